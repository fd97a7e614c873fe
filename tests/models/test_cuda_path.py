"""What a CPU can prove about blocks on a GPU: devices, types and layouts, on CUDA tensors without values."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from convnext_dense.models import fusion_rule
from convnext_dense.models.block import Block
from convnext_dense.models.fused_block import branch_backward, branch_forward, fold
from convnext_dense.models.fusion_rule import plain_parameters, what_to_fuse

# Type of the parameters, of the input and to compute in: fp32, and autocast at the start of a stage and behind it.
TYPES = [
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, torch.float16, torch.float16),
    (torch.float32, torch.float32, torch.float16),
    (torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32, torch.bfloat16),
]


@pytest.fixture
def fake_cuda():
    with FakeTensorMode():
        yield torch.device('cuda')


def block_on(device: torch.device, memory: str | None, use_grn: bool = False) -> Block:
    scale = 0 if use_grn else 1.0
    with device:
        return Block(8, 0.5, scale, use_grn, eps=1e-6, kernel_size=7, memory=memory)


@pytest.mark.parametrize('dropped', [False, True])
@pytest.mark.parametrize('use_grn', [False, True])
@pytest.mark.parametrize('memory', ['default', 'lean', 'checkpoint'])
@pytest.mark.parametrize('param_dtype, x_dtype, dtype', TYPES)
def test_forward_and_backward(param_dtype, x_dtype, dtype, memory, use_grn, dropped, fake_cuda, monkeypatch):
    block = block_on(fake_cuda, memory, use_grn)
    kept = torch.zeros(1, dtype=torch.long, device=fake_cuda) if dropped else None
    monkeypatch.setattr(Block, '_kept_samples', lambda self, x: (kept, 2.0))
    x = torch.zeros(2, 8, 6, 5, device=fake_cuda, dtype=x_dtype).contiguous(memory_format=torch.channels_last)
    params = plain_parameters(block)

    x.requires_grad_()
    out = block.fused(x, dtype, params)
    assert isinstance(out, FakeTensor) and out.device.type == 'cuda' and out.requires_grad
    assert out.shape == x.shape and out.is_contiguous(memory_format=torch.channels_last)
    # The casts of plain autograd: a layer scale in fp32 lifts the sum to fp32, a branch without one does not.
    assert out.dtype == (torch.promote_types(x_dtype, dtype) if use_grn else torch.float32)

    # The engine of autograd asks for a real device: what it would call, as plain functions.
    inside = x.detach().to(dtype)
    options = block._options(2.0, dtype)
    with torch.no_grad():
        _, saved = branch_forward(out.detach(), inside, fold(params, options), options, save=True)
        grad_inside, grads = branch_backward(torch.zeros_like(out), inside, saved, params, options)
    assert (saved.u is None, saved.hidden is None) == {
        'default': (False, False),
        'lean': (False, True),
        'checkpoint': (True, True),
    }[memory]
    assert grad_inside.dtype == dtype and grad_inside.shape == x.shape and grad_inside.device == x.device
    for name, param, grad in zip(params._fields, params, grads, strict=True):
        if param is None:
            assert grad is None, name
        else:
            assert (grad.shape, grad.dtype, grad.device) == (param.shape, param_dtype, x.device), name


@pytest.mark.parametrize('use_grn', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_inference(dtype, use_grn, fake_cuda):
    block = block_on(fake_cuda, 'default', use_grn).eval()
    x = torch.zeros(2, 8, 6, 5, device=fake_cuda)
    for prepared in (False, True):
        block.prepare(prepared)
        with torch.no_grad():
            out = block.fused(x, dtype, plain_parameters(block))
        assert out.device.type == 'cuda' and out.dtype == torch.float32 and out.shape == x.shape


@pytest.mark.parametrize('memory, expected', [(None, None), ('default', 'half'), ('lean', 'half')])
@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
def test_the_rule_on_cuda(half, memory, expected, fake_cuda, monkeypatch):
    """The plain block unless a memory mode was asked for; under autocast, its type."""
    monkeypatch.setattr(fusion_rule, '_len_torch_dispatch_stack', lambda: 0)
    monkeypatch.setattr(fusion_rule, 'PLAIN_TENSORS', (FakeTensor, torch.nn.Parameter))
    block = block_on(fake_cuda, memory)
    x = torch.zeros(2, 8, 6, 5, device=fake_cuda)
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', True)
    torch.set_autocast_dtype('cuda', half)
    try:
        found = what_to_fuse(block, x)
    finally:
        torch.set_autocast_enabled('cuda', before[0])
        torch.set_autocast_dtype('cuda', before[1])
    if expected is None:
        assert found is None and what_to_fuse(block, x) is None
        return
    assert found[1] == half and what_to_fuse(block, x)[1] == torch.float32
    by_name = dict(block.named_parameters())
    order = ['dwconv.weight', 'dwconv.bias', 'norm.weight', 'norm.bias', 'pwconv1.weight', 'pwconv1.bias']
    expected_params = [by_name.get(name) for name in [*order, None, None, 'pwconv2.weight', 'pwconv2.bias', 'gamma']]
    assert all(param is one for param, one in zip(found[0], expected_params, strict=True))
