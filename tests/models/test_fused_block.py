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
from convnext_dense.models import block, cpu_operators, fused_block

MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
BFLOAT16 = dict(device_type='cpu', dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.delenv(fused_block.SWITCH, raising=False)


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
        patch.setenv(fused_block.SWITCH, 'eager')
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
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize('memory', ['default', 'lean'])
def test_products_in_parts(memory, dtype, tolerance, onednn, monkeypatch):
    """Parts of a few tokens, a rest among them, by both libraries; in training and, packed, in inference."""
    amp = dtype == torch.bfloat16
    torch.manual_seed(3)
    model = ConvNeXt(MICRO, memory=memory, layer_scale_init_value=0.5, drop_path_rate=0.5)
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
        for found, out in zip(model(x), whole):
            assert (found - out).norm() <= tolerance * out.norm()
        assert [tensor.is_mkldnn for tensor in model.stages[0][0]._ready[1]].count(True) == 2 * onednn
        for found, out in zip(copy.deepcopy(model)(x), model(x)):  # packed weights cannot be copied
            assert torch.equal(found, out)
        pickle.dumps(model)


def test_v2_blocks_stay_eager(monkeypatch):
    monkeypatch.setattr(fused_block.ResidualBranch, 'apply', None)
    ConvNeXt(MICRO, use_grn=True, layer_scale_init_value=0)(torch.randn(1, 3, 32, 32))[0].sum().backward()


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    params = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 1, 3, 3), (3,), (3,), (3,), (12, 3), (12,), (3, 12), (3,), (3,))
    ]
    x = torch.randn(3, 3, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    for kept, lean in ((None, False), (torch.tensor([0, 2]), True), (torch.tensor([], dtype=torch.long), False)):
        options = kept, 1.5, lean, 1e-6, 1, 1, torch.float64
        assert torch.autograd.gradcheck(fused_block.ResidualBranch.apply, (x, *options, *params))


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


def saved_bytes(block: nn.Module, x: torch.Tensor) -> float:
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
    assert out.requires_grad
    return sum(kept.values()) / x.numel()


@pytest.mark.parametrize('memory, limit', [('default', 12.5), ('lean', 4.5)])
def test_saved_bytes(memory, limit, monkeypatch):
    block = ConvNeXt('atto', memory=memory, layer_scale_init_value=1.0).stages[1][0]
    x = torch.randn(2, 80, 24, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert saved_bytes(block, x) <= limit
    assert eager(monkeypatch, saved_bytes, block, x) > 20


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
        lambda model: (model.stages[0][0].gamma.data.mul_(2), model.eval()),
        lambda model: nn.init.constant_(model.stages[0][0].gamma, 3.0),
        lambda model: setattr(model.stages[0][0], 'gamma', nn.Parameter(torch.ones(8))),
    ],
)
def test_inference_follows_the_parameters(change, monkeypatch):
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)[0]
        keys = list(model.state_dict())
        assert not any('ready' in key for key in keys)
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
        hook._swap_ema_parameters()  # through .data: no version counter moves; the loops call eval() behind it
        model.eval()
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


def test_steps_aside_where_operations_are_recorded(monkeypatch):
    def fail(*args):
        raise AssertionError('one function')

    model = ConvNeXt(MICRO).eval()
    x = torch.randn(1, 3, 64, 64)
    monkeypatch.setattr(block, 'infer', fail)
    monkeypatch.setattr(fused_block.ResidualBranch, 'apply', fail)
    with torch.no_grad():
        traced = torch.jit.trace(model, x, check_trace=False)
    compiled = torch.compile(model.train(), backend='aot_eager')
    with pytest.raises(AssertionError, match='one function'):
        model(x)
    compiled(x)[0].sum().backward()
    torch.testing.assert_close(traced(x)[0], compiled(x)[0].detach())


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
    for other in (dict(with_cp=True), dict(use_grn=True, layer_scale_init_value=0)):
        with pytest.raises(UserError, match="memory='lean'"):
            ConvNeXt('atto', memory='lean', **other)
