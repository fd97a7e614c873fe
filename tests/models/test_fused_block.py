"""The block as one function against the eager block: outputs, all gradients, memory, and when it must not run."""

import copy
import pickle

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import ConvNeXt, UserError
from convnext_dense.models import block, cpu_operators, fused_block, fusion_rule
from convnext_dense.models.block import prepare_for_inference, undo_prepare_for_inference

MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
BFLOAT16 = dict(device_type='cpu', dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.delenv(fusion_rule.SWITCH, raising=False)


def outputs_and_gradients(model: nn.Module, x: torch.Tensor, amp: bool = False) -> tuple[list, dict]:
    torch.manual_seed(0)  # the draws of stochastic depth
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        outputs = model(x)
    generator = torch.Generator().manual_seed(1)
    sum((out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outputs).backward()
    return [out.detach().double() for out in outputs], {
        name: param.grad.double() for name, param in [('x', x), *model.named_parameters()] if param.grad is not None
    }


def eager(monkeypatch, function, *args, **kwargs):
    with monkeypatch.context() as patch:
        patch.setenv(fusion_rule.SWITCH, 'eager')
        return function(*args, **kwargs)


def randomize(model: nn.Module) -> None:
    for param in model.parameters():
        nn.init.normal_(param, std=0.5 if param.ndim == 1 else 0.1)


def distance(found, expected) -> float:
    pairs = [*zip(found[0], expected[0]), *((found[1][name], grad) for name, grad in expected[1].items())]
    return float(sum(((a - b).norm() / b.norm()) ** 2 for a, b in pairs) ** 0.5)


def assert_equal(found, expected, tolerance):
    assert len(found[0]) == len(expected[0]) and found[1].keys() == expected[1].keys()
    for a, b in [*zip(found[0], expected[0]), *((found[1][name], grad) for name, grad in expected[1].items())]:
        assert (a - b).norm() <= tolerance * b.norm() + 1e-12


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(memory='lean'),
        dict(memory='checkpoint'),
        dict(with_cp=True),
        dict(drop_path_rate=0.9),
        dict(drop_path_rate=0.6, memory='lean'),
        dict(drop_path_rate=0.9, memory='checkpoint'),
        dict(output_stride=8),
        dict(out_indices=(1, 2)),
        dict(frozen_stages=2),
        dict(kernel_size=3),
        dict(kernel_size=5),
        dict(in_channels=1),
        dict(layer_scale_init_value=0),
        *(
            dict(use_grn=True, layer_scale_init_value=scale, memory=memory, drop_path_rate=rate)
            for scale in (0, 0.5)
            for memory in ('default', 'lean', 'checkpoint')
            for rate in (0, 0.6)
        ),
    ],
    ids=str,
)
def test_equals_eager(options, dtype, tolerance, monkeypatch):
    torch.manual_seed(3)
    model = ConvNeXt(MICRO, **{'layer_scale_init_value': 0.5, **options}).to(dtype)
    randomize(model)
    for size in ((3, 35, 43), (1, 32, 41)):
        x = torch.randn(size[0], options.get('in_channels', 3), *size[1:], dtype=dtype).transpose(2, 3)
        expected = eager(monkeypatch, outputs_and_gradients, model, x)
        assert_equal(outputs_and_gradients(model, x), expected, tolerance)


@pytest.mark.parametrize('onednn', [False, True])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize('memory', ['default', 'lean'])
@pytest.mark.parametrize('use_grn', [False, True])
def test_products_in_parts(use_grn, memory, dtype, tolerance, onednn, monkeypatch):
    """Parts of a few tokens, a rest among them, by both libraries; in training and, packed, in inference."""
    amp = dtype == torch.bfloat16
    if onednn and amp and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip('oneDNN has no bfloat16 on this processor')
    torch.manual_seed(3)
    model = ConvNeXt(MICRO, memory=memory, use_grn=use_grn, layer_scale_init_value=0.5, drop_path_rate=0.5)
    randomize(model)
    x = torch.randn(3, 3, 70, 37)
    expected = outputs_and_gradients(model, x, amp)
    monkeypatch.setattr(cpu_operators, '_onednn_is_faster', lambda operation, device, dtype, threads: onednn)
    monkeypatch.setattr(cpu_operators, 'CHUNK', 1100)
    monkeypatch.setattr(cpu_operators, 'CHUNK_TO_KEEP', 1700)
    assert_equal(outputs_and_gradients(model, x, amp), expected, tolerance)
    model.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=amp):
        whole = eager(monkeypatch, model, x)
        unprepared = model(x)
        prepared = prepare_for_inference(model)(x)
        for found, packed, out in zip(unprepared, prepared, whole):
            assert (found - out).norm() <= tolerance * out.norm()
            assert (packed - out).norm() <= tolerance * out.norm()
        (folded,) = model.stages[0][0]._prepared.values()
        packed = [folded.pwconv1_weight.is_mkldnn, folded.pwconv2_weight.is_mkldnn]
        assert packed == [onednn, onednn]
        for found, out in zip(copy.deepcopy(model)(x), unprepared):  # packed weights cannot be copied
            assert torch.equal(found, out)
        pickle.dumps(model)


@pytest.mark.parametrize('use_grn', [False, True])
@pytest.mark.parametrize('memory', ['default', 'lean', 'checkpoint'])
def test_gradients_are_those_of_finite_differences(memory, use_grn):
    """First and second derivatives; a layer scale of 0 among the values, whose gradient must not divide by it."""
    torch.manual_seed(0)
    shapes = fused_block.BlockParameters(
        (3, 1, 3, 3), (3,), (3,), (3,), (12, 3), (12,), (12,), (12,), (3, 12), (3,), (3,)
    )
    if not use_grn:
        shapes = shapes._replace(grn_gamma=None, grn_beta=None)
    params = [None if shape is None else torch.randn(shape, dtype=torch.float64) for shape in shapes]
    params[-1][1] = 0
    for param in params:
        if param is not None:
            param.requires_grad_()
    options = fused_block.BlockOptions(1e-6, 1e-6, 1, 1, 1.5, torch.float64, memory)
    residual, inside = (
        torch.randn(2, 3, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2)
    )
    present = [param for param in params if param is not None]

    def function(residual, inside, *present):
        rest = iter(present)
        given = [None if param is None else next(rest) for param in params]
        return fused_block.FusedBranch.apply(residual, inside, options, block.plain_branch, *given)

    assert torch.autograd.gradcheck(function, (residual, inside, *present))
    assert torch.autograd.gradgradcheck(function, (residual, inside, *present))


@pytest.mark.parametrize('use_grn', [False, True])
def test_a_batch_of_dropped_samples_gives_zero_gradients(use_grn):
    model = ConvNeXt(MICRO, use_grn=use_grn, drop_path_rate=0.999, layer_scale_init_value=0.5).stages[3][0].train()
    assert model.drop_path.rate == 0.999
    x = torch.randn(2, 32, 4, 4, requires_grad=True)
    out = model(x)
    out.sum().backward()
    assert torch.equal(out, x) and torch.equal(x.grad, torch.ones_like(x))
    assert all(torch.count_nonzero(param.grad) == 0 for param in model.parameters())


def test_bfloat16_is_no_further_from_float64_than_eager(monkeypatch):
    for seed in range(5):
        torch.manual_seed(seed)
        model = ConvNeXt(MICRO, layer_scale_init_value=0.5)
        randomize(model)
        x = torch.randn(2, 3, 40 + seed, 51)
        exact = eager(monkeypatch, outputs_and_gradients, copy.deepcopy(model).double(), x.double())
        assert distance(outputs_and_gradients(model, x, True), exact) <= 1.2 * distance(
            eager(monkeypatch, outputs_and_gradients, model, x, True), exact
        )


def saved_bytes(block: nn.Module, x: torch.Tensor, grad_fn: str) -> float:
    """Kept for the backward pass, a token and channel, parameters aside; each storage once."""
    own = {param.untyped_storage().data_ptr() for param in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast(**BFLOAT16):
        out = block(x)
    assert type(out.grad_fn).__name__ == grad_fn
    assert out.requires_grad
    return sum(kept.values()) / x.numel()


@pytest.mark.parametrize('use_grn', [False, True])
@pytest.mark.parametrize('memory, limit', [('default', 12.5), ('lean', 4.5), ('checkpoint', 2.5)])
def test_saved_bytes(memory, limit, use_grn, monkeypatch):
    # The rule would see the hooks that count.
    monkeypatch.setattr(fusion_rule, '_operations_are_recorded', lambda: False)
    block = ConvNeXt('atto', memory=memory, use_grn=use_grn, layer_scale_init_value=1.0).stages[1][0]
    x = torch.randn(2, 80, 24, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert saved_bytes(block, x, 'FusedBranchBackward') <= limit
    if memory != 'checkpoint':
        assert eager(monkeypatch, saved_bytes, block, x, 'AddBackward0') > 20


def test_dropped_samples_are_not_computed(monkeypatch):
    rows = []
    linear = fused_block.linear

    def counted(x, *args, **kwargs):
        rows.append(x.shape[:-1].numel() // 4)
        return linear(x, *args, **kwargs)

    monkeypatch.setattr(fused_block, 'linear', counted)
    block = ConvNeXt(MICRO, drop_path_rate=0.5).stages[3][0].train()
    assert block.drop_path.rate == 0.5
    x = torch.randn(400, 32, 2, 2).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    out = block(x)
    kept = sum((out != x).flatten(1).any(1)).item()
    assert rows == [kept, kept] and 160 < kept < 240  # Bernoulli(0.5): 200, deviation 10


@pytest.mark.parametrize(
    'change',
    [
        lambda model: model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()}),
        lambda model: model.stages[0][0].gamma.data.mul_(2),
        lambda model: nn.init.constant_(model.stages[0][0].gamma, 3.0),
        lambda model: setattr(model.stages[0][0], 'gamma', nn.Parameter(torch.ones(8))),
        # As mean teachers and averages of weights do: no version counter moves.
        lambda model: model.stages[0][0].pwconv1.weight.data.mul_(2),
        lambda model: model.stages[0][0].pwconv2.bias.data.copy_(torch.arange(8.0)),
    ],
)
def test_inference_follows_the_parameters(change, monkeypatch):
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)[0]
        change(model)
        after = model(x)[0]
        expected = eager(monkeypatch, model, x)[0]
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_inference_follows_the_averages_of_ema_hook(monkeypatch):
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5).eval()
    hook = EMAHook()
    hook.src_model = model
    hook.ema_model = ExponentialMovingAverage(copy.deepcopy(model))
    for param in hook.ema_model.module.parameters():
        nn.init.normal_(param, std=0.3)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(x)
        hook._swap_ema_parameters()  # through .data: no version counter moves
        torch.testing.assert_close(model(x)[0], eager(monkeypatch, model, x)[0], rtol=1e-4, atol=1e-4)


def test_inference_in_bfloat16(monkeypatch):
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(), torch.autocast(**BFLOAT16):
        found, expected = model(x), eager(monkeypatch, model, x)
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_depthwise_weight_gradient_in_slices(dtype):
    torch.manual_seed(0)
    for side, padding, dilation, height, width in ((7, 3, 1, 9, 4), (5, 2, 1, 7, 7), (3, 1, 1, 5, 6), (7, 6, 2, 9, 13)):
        conv = nn.Conv2d(6, 6, side, padding=padding, dilation=dilation, groups=6).double()
        x, grad = (
            torch.randn(2, 6, height, width).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )
        conv(x.double()).backward(grad.double())
        weight_grad, bias_grad = cpu_operators.depthwise_weight_grad(x, grad, conv.weight.to(dtype), padding, dilation)
        tolerance = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=0.02, atol=0.1)
        torch.testing.assert_close(weight_grad.double(), conv.weight.grad, **tolerance)
        torch.testing.assert_close(bias_grad.double(), conv.bias.grad, **tolerance)


@pytest.mark.parametrize(
    'undo',
    [
        lambda model: model.train().eval(),
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: model.double().float(),
        lambda model: undo_prepare_for_inference(model),
    ],
    ids=['train', 'load_state_dict', 'another type', 'undo'],
)
def test_a_prepared_model_is_as_promised(undo):
    """Prepared, changes of the parameters are not seen; what takes the promise back brings them into sight."""
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5)
    x = torch.randn(1, 3, 64, 64)
    keys = list(model.state_dict())
    assert prepare_for_inference(model) is model and not model.training
    with torch.no_grad():
        before = model(x)[0]
        model.stages[0][0].pwconv2.weight.data.mul_(3)
        assert torch.equal(model(x)[0], before)
        assert list(model.state_dict()) == keys
        undo(model)
        assert not torch.allclose(model(x)[0], before, atol=1e-4)


def test_operations_are_counted_as_of_the_eager_block(monkeypatch):
    model, x = ConvNeXt(MICRO), torch.randn(1, 3, 64, 64)

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            model(x)[0].sum().backward()
        return counter.get_total_flops()

    assert count() == eager(monkeypatch, count) > 1e6


def test_memory_modes_are_checked():
    with pytest.raises(UserError, match="'default', 'lean', 'checkpoint'"):
        ConvNeXt('atto', memory='none')
    for memory in ('default', 'lean'):
        with pytest.raises(UserError, match=f"memory='{memory}'"):
            ConvNeXt('atto', memory=memory, with_cp=True)
    assert ConvNeXt(MICRO, with_cp=True).stages[0][0].memory == 'checkpoint'
