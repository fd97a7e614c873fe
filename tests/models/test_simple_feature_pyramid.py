"""The neck behind one map: against a plain formula, counts worked out beforehand, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import SimpleFeaturePyramid, UserError


def plain(x: Tensor, state: dict[str, Tensor]) -> tuple[list[Tensor], set[str]]:
    """The five levels, and the names of the tensors that they take."""
    used = set()

    def take(name: str) -> Tensor:
        used.add(name)
        return state[name]

    def norm(y: Tensor, name: str) -> Tensor:
        centred = y - y.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * take(f'{name}.weight').view(-1, 1, 1) + take(f'{name}.bias').view(-1, 1, 1)

    def upsample(y: Tensor, name: str) -> Tensor:
        """Each position becomes a patch of 2x2."""
        patches = torch.einsum('nchw,cdij->ndhiwj', y, take(f'{name}.weight'))
        n, d, h, _, w, _ = patches.shape
        return patches.reshape(n, d, 2 * h, 2 * w) + take(f'{name}.bias').view(-1, 1, 1)

    def tail(y: Tensor, level: str, first: int) -> Tensor:
        y = norm(F.conv2d(y, take(f'{level}.{first}.weight')), f'{level}.{first + 1}')
        return norm(F.conv2d(y, take(f'{level}.{first + 2}.weight'), padding=1), f'{level}.{first + 3}')

    four = F.gelu(norm(upsample(x, 'levels.stride4.0'), 'levels.stride4.1'))
    four = tail(upsample(four, 'levels.stride4.3'), 'levels.stride4', 4)
    eight = tail(upsample(x, 'levels.stride8.0'), 'levels.stride8', 1)
    sixteen = tail(x, 'levels.stride16', 0)
    halved = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    n, c, h, w = halved.shape
    thirty_two = tail(halved.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5)), 'levels.stride32', 1)
    return [four, eight, sixteen, thirty_two, thirty_two[:, :, ::2, ::2]], used


@pytest.mark.parametrize('size', [(4, 6), (5, 7)])
def test_equals_the_plain_formula(size):
    model = MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=16, out_channels=8)).double()
    generator = torch.Generator().manual_seed(0)
    for param in model.parameters():
        param.data.copy_(torch.randn(param.shape, generator=generator))
    x = torch.randn(2, 16, *size, generator=generator).double()
    outputs = model((x,))
    expected, used = plain(x, dict(model.named_parameters()))
    assert used == {name for name, _ in model.named_parameters()}
    for out, want in zip(outputs, expected, strict=True):
        assert out.is_contiguous()
        torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9)
    sum(out.square().sum() for out in outputs).backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize(
    'width, params, gflops, of_levels',
    [
        (384, 3_298_144, '56.525', ['41.681', '11.403', '2.753', '0.688']),
        (768, 5_560_000, '69.992', ['50.332', '15.729', '3.146', '0.786']),
        (1024, 7_805_184, '82.903', ['58.720', '19.923', '3.408', '0.852']),
    ],
)
def test_counts(width, params, gflops, of_levels):
    """At 1280x800, convolutions only."""
    with torch.device('meta'):
        model = SimpleFeaturePyramid(width)
    assert sum(param.numel() for param in model.parameters()) == params
    map_of_16 = torch.empty(1, width, 50, 80, device='meta')

    def count(module, x) -> str:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        return f'{counter.get_total_flops() / 2e9:.3f}'

    assert [count(level, map_of_16) for level in model.levels.values()] == of_levels
    assert count(model, [map_of_16]) == gflops
    shapes = [tuple(out.shape) for out in model([map_of_16])]
    assert shapes == [(1, 256, h, w) for h, w in [(200, 320), (100, 160), (50, 80), (25, 40), (13, 20)]]


@pytest.mark.parametrize('strides', [(4, 8, 16, 32), (8, 32), (32, 64)])
def test_strides(strides):
    model = SimpleFeaturePyramid(8, 4, strides)
    assert [out.shape[2] * stride for out, stride in zip(model([torch.zeros(1, 8, 8, 8)]), strides, strict=True)] == [
        128
    ] * len(strides)


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(strides=(2, 4)), r'cannot make strides=\(2, 4\): give some of \(4, 8, 16, 32, 64\)'),
        (dict(strides=(8, 4)), 'ascending order'),
        (dict(strides=()), 'give some of'),
        (dict(strides=(16, 64)), 'makes stride 64 from stride 32'),
        (dict(in_channels=6), 'found in_channels=6: give a multiple of 4'),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(UserError, match=sentence):
        SimpleFeaturePyramid(**{'in_channels': 8, **options})


def test_several_maps():
    with pytest.raises(UserError, match='takes one map of stride 16, found 2 maps'):
        SimpleFeaturePyramid(8)([torch.zeros(1, 8, 4, 4)] * 2)
