"""Our operators against mmcv's compiled ones on the CPU: ``make test-mmcv``, in an environment with a compiled mmcv.

mmcv has no CPU kernel for roi_pool, deform_roi_pool, the focal losses, ms_deform_attn, carafe, the masked convolution
and sync_bn. Those have only their formulas, in the tests next to this file.
"""

import pytest
import torch
from torch import Tensor

from convnext_dense.mmcv_ops import operators_in_use

pytestmark = pytest.mark.skipif(
    not operators_in_use().startswith('compiled'), reason='mmcv is not compiled in this environment'
)
SETS = 60
NO_KERNEL = [
    'carafe_forward',
    'deform_roi_pool_forward',
    'masked_im2col_forward',
    'ms_deform_attn_forward',
    'roi_pool_forward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_forward',
    'sync_bn_forward_mean',
]


@pytest.fixture
def both(extension) -> tuple:
    """The compiled module and ours."""
    import mmcv._ext

    return mmcv._ext, extension


def random_boxes(seed: int, tied: bool, whole: bool) -> tuple[Tensor, Tensor]:
    """100 crowded boxes with scores; tied: of 8 levels; whole: with integer corners, so overlaps meet thresholds."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(100, 2, generator=generator) * 60
    size = torch.rand(100, 2, generator=generator) * 40 + 1
    boxes = torch.cat((corner, corner + size), 1)
    scores = torch.rand(100, generator=generator)
    if whole:
        boxes = boxes.round()
    if tied:
        scores = (scores * 8).ceil() / 8
    return boxes, scores


def assert_near(first: Tensor, second: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    assert first.shape == second.shape and (first - second).abs().max() <= 1e-5 * first.abs().max()


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.6])
def test_nms(both, threshold, offset, tied, whole):
    for seed in range(SETS):
        boxes, scores = random_boxes(seed, tied, whole)
        compiled, ours = (module.nms(boxes, scores, iou_threshold=threshold, offset=offset) for module in both)
        assert compiled.tolist() == ours.tolist()


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('min_score', [0.001, 0.2])
def test_softnms(both, min_score, method, offset, tied, whole):
    for seed in range(SETS):
        boxes, scores = random_boxes(seed, tied, whole)
        results = []
        for module in both:
            dets = torch.zeros(100, 5)
            kept = module.softnms(boxes, scores, dets, 0.3, 0.5, min_score, method, offset)
            results.append((kept.tolist(), dets[: len(kept)]))
        assert results[0][0] == results[1][0]
        assert_near(results[0][1], results[1][1])


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('tied', [False, True])
def test_nms_match(both, tied, whole):
    for seed in range(SETS):
        boxes, scores = random_boxes(seed, tied, whole)
        dets = torch.cat((boxes, scores[:, None]), 1)
        compiled, ours = (module.nms_match(dets, 0.5) for module in both)
        assert compiled == ours


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', [0, 1])
@pytest.mark.parametrize('aligned', [False, True])
def test_bbox_overlaps(both, mode, aligned, offset):
    first, second = random_boxes(0, False, False)[0], random_boxes(1, False, False)[0]
    results = [first.new_zeros(100 if aligned else (100, 100)) for _ in both]
    for module, ious in zip(both, results):
        module.bbox_overlaps(first, second, ious, mode=mode, aligned=aligned, offset=offset)
    assert_near(*results)


def regions(seed: int) -> Tensor:
    """Regions of two images of 40 x 40, some over the edge."""
    boxes = random_boxes(seed, False, False)[0][:20] - 10
    return torch.cat((torch.arange(20).float()[:, None] % 2, boxes), 1)


@pytest.mark.parametrize('pool_mode', [0, 1])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('scale', [1.0, 0.25])
def test_roi_align(both, pool_mode, aligned, sampling_ratio, scale):
    features = torch.randn(2, 3, 40, 40)
    rois = regions(0)
    options = (7, 5, scale, sampling_ratio, pool_mode, aligned)
    grad = torch.randn(20, 3, 7, 5)
    results = []
    for module in both:
        output, argmax_y, argmax_x = (torch.zeros(20, 3, 7, 5) for _ in range(3))
        module.roi_align_forward(features, rois, output, argmax_y, argmax_x, *options)
        grad_input = torch.zeros_like(features)
        module.roi_align_backward(grad, rois, argmax_y, argmax_x, grad_input, *options)
        results.append((output, argmax_y, argmax_x, grad_input))
    for compiled, ours in zip(*results):
        if pool_mode == 1 or compiled is not results[0][3]:
            assert torch.equal(compiled, ours)
        assert_near(compiled, ours)


CONVOLUTIONS = [
    dict(stride=(1, 1), pad=(1, 1), dilation=(1, 1), group=1, deformable_group=1),
    dict(stride=(2, 1), pad=(0, 2), dilation=(1, 2), group=2, deformable_group=2),
]


def convolution_inputs(stride, pad, dilation, group, deformable_group) -> dict[str, Tensor]:
    """Two images of 4 channels, 6 output channels, a 3 x 3 kernel."""
    torch.manual_seed(0)
    height, width = ((11 + 2 * pad[i] - 2 * dilation[i] - 1) // stride[i] + 1 for i in range(2))
    return dict(
        input=torch.randn(2, 4, 11, 11),
        weight=torch.randn(6, 4 // group, 3, 3),
        bias=torch.randn(6),
        offset=torch.randn(2, deformable_group * 18, height, width) * 2,
        mask=torch.rand(2, deformable_group * 9, height, width),
        grad=torch.randn(2, 6, height, width),
    )


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_deform_conv(both, case):
    data = convolution_inputs(**case)
    (dh, dw), (ph, pw), (lh, lw) = case['stride'], case['pad'], case['dilation']
    options = dict(kW=3, kH=3, dW=dw, dH=dh, padW=pw, padH=ph, dilationW=lw, dilationH=lh)
    options.update(group=case['group'], deformable_group=case['deformable_group'], im2col_step=2)
    results = []
    for module in both:
        images, weight, offset = data['input'], data['weight'], data['offset']
        output, columns, ones = torch.zeros_like(data['grad']), torch.empty(0), torch.empty(0)
        module.deform_conv_forward(images, weight, offset, output, columns, ones, **options)
        grads = [torch.zeros_like(tensor) for tensor in (images, offset, weight)]
        module.deform_conv_backward_input(images, offset, data['grad'], *grads[:2], weight, columns, **options)
        module.deform_conv_backward_parameters(
            images, offset, data['grad'], grads[2], columns, ones, scale=1, **options
        )
        results.append((output, *grads))
    for compiled, ours in zip(*results):
        assert_near(compiled, ours)


@pytest.mark.parametrize('larger', [False, True])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_modulated_deform_conv(both, case, with_bias, larger):
    data = convolution_inputs(**case)
    if larger:  # offsets and factors of a map of twice the size, as DyHead gives
        for name in ('offset', 'mask'):
            data[name] = data[name].repeat(1, 1, 2, 2) + torch.rand(1, 1, 2 * data[name].shape[2], 1)
    (dh, dw), (ph, pw), (lh, lw) = case['stride'], case['pad'], case['dilation']
    options = dict(kernel_h=3, kernel_w=3, stride_h=dh, stride_w=dw, pad_h=ph, pad_w=pw, dilation_h=lh, dilation_w=lw)
    options.update(group=case['group'], deformable_group=case['deformable_group'], with_bias=with_bias)
    bias = data['bias'] if with_bias else torch.empty(0)
    inputs = (data['input'], data['weight'], bias)
    results = []
    for module in both:
        output, columns, ones = torch.zeros_like(data['grad']), torch.empty(0), torch.empty(0)
        module.modulated_deform_conv_forward(*inputs, ones, data['offset'], data['mask'], output, columns, **options)
        grads = [torch.zeros_like(tensor) for tensor in (*inputs, data['offset'], data['mask'])]
        module.modulated_deform_conv_backward(
            *inputs, ones, data['offset'], data['mask'], columns, *grads, data['grad'], **options
        )
        results.append([tensor for tensor in (output, *grads) if tensor.numel()])
    for compiled, ours in zip(*results):
        assert_near(compiled, ours)


@pytest.mark.parametrize('psa_type', [0, 1])
def test_psamask(both, psa_type):
    attention = torch.randn(2, 15, 4, 6)
    grad = torch.randn(2, 24, 4, 6)
    options = dict(num_=2, h_feature=4, w_feature=6, h_mask=3, w_mask=5, half_h_mask=1, half_w_mask=2)
    results = []
    for module in both:
        output, grad_input = torch.zeros(2, 24, 4, 6), torch.zeros_like(attention)
        module.psamask_forward(attention, output, psa_type, **options)
        module.psamask_backward(grad, grad_input, psa_type, **options)
        results.append((output, grad_input))
    for compiled, ours in zip(*results):
        assert torch.equal(compiled, ours)


@pytest.mark.parametrize('name', NO_KERNEL)
def test_operators_without_a_cpu_kernel(both, name):
    """mmcv's dispatcher refuses them on the CPU; where it ceases to, compare that operator above."""
    compiled, ours = (getattr(module, name) for module in both)
    one = torch.ones(1, 1)
    numbers = (compiled.__doc__ or '').split('->')[0]
    kinds = [part.split(':')[1].strip() for part in numbers.split(',') if ':' in part]
    values = [one if 'Tensor' in kind else 1 for kind in kinds]
    with pytest.raises(RuntimeError, match='not found for device|implementation for device'):
        compiled(*values)
    assert callable(ours)
