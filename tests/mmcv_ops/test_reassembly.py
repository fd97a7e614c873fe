"""CARAFE, point-wise spatial attention and masked convolution against loops over positions, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def upsampled(features: Tensor, kernels: Tensor, size: int, groups: int, scale: int) -> Tensor:
    num, channels, height, width = features.shape
    output = torch.zeros(num, channels, height * scale, width * scale, dtype=torch.float64)
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        group = c // (channels // groups)
        for u in range(size):
            for v in range(size):
                y, x = i // scale + u - size // 2, j // scale + v - size // 2
                if 0 <= y < height and 0 <= x < width:
                    kernel = kernels[n, group * size * size + u * size + v, i, j]
                    output[n, c, i, j] += features[n, c, y, x] * kernel
    return output


@pytest.mark.parametrize('size, groups, scale', [(3, 1, 2), (1, 2, 3), (5, 2, 1)])
def test_carafe(ops, size, groups, scale):
    features, kernels = random(0, 2, 4, 3, 2), random(1, 2, groups * size**2, 3 * scale, 2 * scale)
    expected = upsampled(features, kernels, size, groups, scale)
    torch.testing.assert_close(ops.carafe(features, kernels, size, groups, scale), expected)
    torch.testing.assert_close(ops.carafe_naive(features, kernels, size, groups, scale), expected)
    tensors = [features.requires_grad_(), kernels.requires_grad_()]
    assert gradcheck(lambda x, k: ops.carafe(x, k, size, groups, scale), tensors, fast_mode=True)


def test_gradients_of_carafe_naive(ops, extension):
    """By the operator itself: mmcv's function refuses to go backward on a CPU."""
    features, kernels = random(0, 2, 4, 3, 2).requires_grad_(), random(1, 2, 18, 6, 4).requires_grad_()
    grad = random(2, 2, 4, 6, 4)
    expected = torch.autograd.grad(ops.carafe(features, kernels, 3, 2, 2), (features, kernels), grad)
    found = torch.zeros_like(features), torch.zeros_like(kernels)
    extension.carafe_naive_backward(grad, features, kernels, *found, kernel_size=3, group_size=2, scale_factor=2)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_carafe_under_autocast(ops, dtype):
    torch.manual_seed(0)
    layer = ops.CARAFEPack(4, 2)
    images = torch.randn(1, 4, 4, 4)
    exact = layer(images)
    with torch.autocast('cpu', dtype=dtype):
        found = layer(images.to(dtype))
    assert found.dtype == dtype and (found - exact).abs().max() < 0.03
    found.float().sum().backward()
    assert layer.content_encoder.weight.grad.isfinite().all()


@pytest.mark.parametrize('kind', ['collect', 'distribute'])
@pytest.mark.parametrize('mask_size', [(3, 5), (5, 7)])
def test_psa_mask(ops, kind, mask_size):
    """What position s gives to t lies in channel t at s, or in channel s at t."""
    height, width = 3, 4
    attention = random(0, 2, mask_size[0] * mask_size[1], height, width)
    expected = torch.zeros(2, height * width, height, width, dtype=torch.float64)
    for y, x, u, v in torch.cartesian_prod(*map(torch.arange, (height, width, height, width))).tolist():
        row, column = u - y + mask_size[0] // 2, v - x + mask_size[1] // 2
        if 0 <= row < mask_size[0] and 0 <= column < mask_size[1]:
            given = attention[:, row * mask_size[1] + column, y, x]
            if kind == 'collect':
                expected[:, u * width + v, y, x] = given
            else:
                expected[:, y * width + x, u, v] = given
    layer = ops.PSAMask(kind, mask_size)
    assert torch.equal(layer(attention), expected)
    assert gradcheck(layer, attention.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize('padding', [(1, 2), (0, 0)])
def test_masked_conv2d(ops, padding):
    """The convolution where the mask is set, 0 elsewhere."""
    layer = ops.MaskedConv2d(2, 3, (3, 5), padding=padding).double()
    images = random(0, 1, 2, 6, 7)
    output_size = [6 + 2 * padding[0] - 2, 7 + 2 * padding[1] - 4]
    mask = torch.zeros(1, 6, 7)
    mask[:, : output_size[0], : output_size[1]] = (random(1, 1, *output_size) > 0).float()
    assert 0 < mask.sum() < mask.numel()
    exact = F.conv2d(images, layer.weight, layer.bias, padding=padding)
    expected = exact * mask[:, : output_size[0], : output_size[1]]
    torch.testing.assert_close(layer(images, mask), expected)
    assert not layer(images, torch.zeros_like(mask)).any()
