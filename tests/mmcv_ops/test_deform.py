"""Deformable convolution and attention against sums over taps and points, in fp64."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

CASES = [
    dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1),
    dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2, deform_groups=2),
]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_at(plane: Tensor, y: float, x: float) -> float:
    """Bilinear value; pixels outside are zero."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += float(plane[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def pair(value: int | tuple) -> tuple:
    return value if isinstance(value, tuple) else (value, value)


def output_size(images: Tensor, stride, padding, dilation, **_) -> list[int]:
    """Of a kernel of 2 x 3."""
    sizes = []
    for size, kernel, s, p, d in zip(images.shape[2:], (2, 3), *map(pair, (stride, padding, dilation))):
        sizes.append((size + 2 * p - d * (kernel - 1) - 1) // s + 1)
    return sizes


def convolved(images: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, case) -> Tensor:
    stride, padding, dilation = (pair(case[name]) for name in ('stride', 'padding', 'dilation'))
    num_out, per_group, *kernel = weight.shape
    channels = images.shape[1]
    output = torch.zeros(len(images), num_out, *output_size(images, **case), dtype=torch.float64)
    for n, o, i, j in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        group = o // (num_out // case['groups'])
        total = float(bias[o]) if bias is not None else 0.0
        for c in range(per_group):
            channel = group * per_group + c
            own = channel // (channels // case['deform_groups'])
            for tap in range(kernel[0] * kernel[1]):
                u, v = divmod(tap, kernel[1])
                place = own * kernel[0] * kernel[1] + tap
                y = i * stride[0] - padding[0] + u * dilation[0] + float(offset[n, 2 * place, i, j])
                x = j * stride[1] - padding[1] + v * dilation[1] + float(offset[n, 2 * place + 1, i, j])
                factor = float(mask[n, place, i, j]) if mask is not None else 1.0
                total += float(weight[o, c, u, v]) * factor * value_at(images[n, channel], y, x)
        output[n, o, i, j] = total
    return output


def inputs(case) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images, offsets, masks, weight and bias: a kernel of 2 x 3, 2 to 2 channels."""
    images = random(0, 2, 2, 4, 5)
    size = output_size(images, **case)
    offset = random(1, 2, case['deform_groups'] * 12, *size)
    mask = random(2, 2, case['deform_groups'] * 6, *size).sigmoid()
    return images, offset, mask, random(3, 2, 2 // case['groups'], 2, 3), random(4, 2)


@pytest.mark.parametrize('case', CASES)
def test_deform_conv2d(ops, case):
    images, offset, _, weight, _ = inputs(case)

    def layer(images, offset, weight):
        return ops.deform_conv2d(images, offset, weight, *case.values())

    torch.testing.assert_close(layer(images, offset, weight), convolved(images, offset, None, weight, None, case))
    tensors = [tensor.requires_grad_() for tensor in (images, offset, weight)]
    assert gradcheck(layer, tensors)
    images.requires_grad_(False)
    offset.requires_grad_(False)
    assert gradcheck(layer, tensors), 'the gradient of the weight alone'


@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_modulated_deform_conv2d(ops, case, with_bias):
    images, offset, mask, weight, bias = inputs(case)
    if not with_bias:
        bias = None

    def layer(*tensors):
        return ops.modulated_deform_conv2d(*tensors, *case.values())

    found = layer(images, offset, mask, weight, bias)
    torch.testing.assert_close(found, convolved(images, offset, mask, weight, bias, case))
    tensors = [images, offset, mask, weight, bias]
    assert gradcheck(layer, [tensor if tensor is None else tensor.requires_grad_() for tensor in tensors])


@pytest.mark.parametrize('case', CASES)
def test_offsets_of_a_larger_map_are_read_as_memory(ops, case):
    """As the compiled operator does; DyHead gives the offsets of a map of twice the size."""
    images, offset, mask, weight, bias = inputs(case)
    height, width = offset.shape[2:]
    larger = [random(5, *tensor.shape[:2], 2 * height, 2 * width) for tensor in (offset, mask)]
    for tensor, values in zip(larger, (offset, mask)):
        for image, wanted in zip(tensor, values):
            image.view(-1)[: wanted.numel()] = wanted.flatten()

    def layer(*tensors):
        return ops.modulated_deform_conv2d(*tensors, *case.values())

    found = layer(images, *larger, weight, bias)
    torch.testing.assert_close(found, convolved(images, offset, mask, weight, bias, case))
    assert gradcheck(layer, [tensor.requires_grad_() for tensor in (images, *larger, weight, bias)])


def test_offsets_of_a_smaller_map_are_refused(ops):
    images, offset, mask, weight, bias = inputs(CASES[0])
    with pytest.raises(RuntimeError, match='offset output dims'):
        ops.modulated_deform_conv2d(images, offset[..., :-1], mask, weight, bias, *CASES[0].values())


def test_backward_through_a_deformable_convolution_twice(ops):
    """The scratch that carries the gradient of the weight is made anew."""
    images, offset, _, weight, _ = inputs(CASES[0])
    weight.requires_grad_()
    output = ops.deform_conv2d(images.requires_grad_(), offset, weight, 1, 1)
    first, second = (torch.autograd.grad(output, weight, g * output, retain_graph=True)[0] for g in (1, 3))
    torch.testing.assert_close(3 * first, second)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('layer', ['DeformConv2dPack', 'ModulatedDeformConv2dPack', 'SAConv2d'])
def test_layers_under_autocast(ops, layer, dtype):
    """The offsets come in the half type, and mmcv takes the others along."""
    torch.manual_seed(0)
    module = getattr(ops, layer)(4, 4, kernel_size=3, padding=1)
    images = torch.randn(2, 4, 6, 6)
    exact = module(images)
    with torch.autocast('cpu', dtype=dtype):
        found = module(images)
    assert (found.float() - exact).abs().max() < 0.03 * exact.abs().max()
    found.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert module.weight.grad.abs().sum() > 0


def attended(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted values at the sampled positions."""
    num, _, heads, dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    output = torch.zeros(num, queries, heads, dim, dtype=torch.float64)
    for n, q, h, d in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        start = 0
        for level, (height, width) in enumerate(shapes):
            plane = value[n, start : start + height * width, h, d].reshape(height, width)
            start += height * width
            for point in range(points):
                x, y = locations[n, q, h, level, point].tolist()
                found = value_at(plane, y * height - 0.5, x * width - 0.5)
                output[n, q, h, d] += float(weights[n, q, h, level, point]) * found
    return output.flatten(2)


@pytest.fixture
def attention() -> tuple:
    """Values of maps of 3 x 4 and 2 x 2, the maps, their starts, locations (some outside) and weights."""
    value = random(0, 2, 16, 2, 3)
    locations = random(1, 2, 3, 2, 2, 2, 2) * 0.4 + 0.5
    weights = random(2, 2, 3, 2, 2, 2).sigmoid()
    return value, torch.tensor([[3, 4], [2, 2]]), torch.tensor([0, 12]), locations, weights


def test_multi_scale_deformable_attention(ops, attention):
    value, shapes, starts, locations, weights = attention
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    found = function.apply(value, shapes, starts, locations, weights, 64)
    torch.testing.assert_close(found, attended(value, shapes.tolist(), locations, weights))

    def layer(value, locations, weights):
        return function.apply(value, shapes, starts, locations, weights, 64)

    assert gradcheck(layer, [tensor.requires_grad_() for tensor in (value, locations, weights)])


def test_multi_scale_deformable_attention_in_a_half_type(ops, attention):
    value, shapes, starts, locations, weights = attention
    half = [tensor.to(torch.bfloat16).requires_grad_() for tensor in (value, locations, weights)]
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    found = function.apply(half[0], shapes, starts, *half[1:], 64)
    value, locations, weights = (tensor.detach().double() for tensor in half)
    exact = attended(value, shapes.tolist(), locations, weights)
    assert found.dtype == torch.bfloat16 and (found.double() - exact).abs().max() < 0.02
    found.float().sum().backward()
    assert all(tensor.grad.dtype == torch.bfloat16 and tensor.grad.abs().sum() > 0 for tensor in half)
