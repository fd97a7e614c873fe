"""Pooling of regions against loops over bins, samples and pixels, in fp64."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck as full_gradcheck

SCALE = 0.5
gradcheck = partial(full_gradcheck, fast_mode=True)
# Inside; over the edges; smaller than a pixel; in the second image.
ROIS = torch.tensor(
    [[0, 1.3, 2.1, 9.7, 12.9], [0, -6, 5, 8, 23], [0, 6, 6, 6.7, 6.9], [1, 3.2, 1.1, 14.8, 9.3]], dtype=torch.float64
)


@pytest.fixture
def features() -> Tensor:
    """Two images of 2 channels and 6 x 8 pixels."""
    return torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def value_at(plane: Tensor, y: float, x: float) -> float:
    """Bilinear value: the edge's up to a pixel outside, 0 further out."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    total = 0.0
    for row in {math.floor(y), math.ceil(y)}:
        for column in {math.floor(x), math.ceil(x)}:
            total += float(plane[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def bin_samples(roi: Tensor, shape: tuple, bin_y: int, bin_x: int, ratio: int, aligned: bool, move=(0, 0)) -> list:
    """Coordinates of the samples of one bin; ``move``: y and x in units of the region."""
    shift = 0.5 if aligned else 0
    x1, y1, x2, y2 = [value * SCALE - shift for value in roi[1:].tolist()]
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1), max(width, 1)
    step_y, step_x = height / shape[0], width / shape[1]
    num_y, num_x = ratio or math.ceil(step_y), ratio or math.ceil(step_x)
    y1, x1 = y1 + move[0] * height, x1 + move[1] * width
    samples = []
    for i in range(num_y):
        for j in range(num_x):
            samples.append((y1 + (bin_y + (i + 0.5) / num_y) * step_y, x1 + (bin_x + (j + 0.5) / num_x) * step_x))
    return samples


def pooled(features: Tensor, shape: tuple, ratio: int, aligned: bool, reduce, moves: Tensor | None = None) -> Tensor:
    output = torch.zeros(len(ROIS), features.shape[1], *shape, dtype=torch.float64)
    for k, c, i, j in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        move = moves[k, :, i, j].tolist()[::-1] if moves is not None else (0, 0)
        samples = bin_samples(ROIS[k], shape, i, j, ratio, aligned, move)
        output[k, c, i, j] = reduce([value_at(features[int(ROIS[k, 0]), c], *sample) for sample in samples])
    return output


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize('mode, reduce', [('avg', mean), ('max', max)])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align(ops, features, ratio, aligned, mode, reduce):
    layer = ops.RoIAlign((3, 2), SCALE, ratio, mode, aligned)
    torch.testing.assert_close(layer(features, ROIS), pooled(features, (3, 2), ratio, aligned, reduce))
    assert gradcheck(lambda x: layer(x, ROIS), features.requires_grad_())


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('dtype, bound', [(torch.float16, 1e-2), (torch.bfloat16, 8e-2)])
def test_roi_align_in_half_types(ops, features, mode, dtype, bound):
    """Rounding of features and regions only: sums are of fp32."""
    layer = ops.RoIAlign((3, 2), SCALE, 2, mode)
    half, rois = features.to(dtype), ROIS.to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = layer(half.requires_grad_(), rois)
    assert found.dtype == dtype
    assert (found.double() - layer(half.double(), rois.double())).abs().max() < bound
    found.sum().backward()
    assert half.grad.dtype == dtype and half.grad.sum() > 0


def test_roi_align_of_an_empty_region_and_of_none(ops, features):
    empty = torch.tensor([[0, 5.0, 5, 5, 5]], dtype=torch.float64)
    for mode in ('avg', 'max'):
        assert ops.roi_align(features, empty, (2, 2), 1.0, 0, mode).tolist() == [[[[0, 0]] * 2] * 2]
        assert ops.roi_align(features, empty[:0], (2, 2), 1.0, 0, mode).shape == (0, 2, 2, 2)


def test_roi_align_of_channels_last(ops, features):
    """mmcv's kernels read such memory as NCHW."""
    last = features.contiguous(memory_format=torch.channels_last)
    for mode in ('avg', 'max'):
        layer = ops.RoIAlign((3, 2), SCALE, 2, mode)
        assert torch.equal(layer(last, ROIS), layer(features, ROIS))


def roi_pooled(features: Tensor, shape: tuple) -> Tensor:
    """The maximum of all pixels that a bin touches; the last pixel of a region belongs to it."""
    output = torch.zeros(len(ROIS), features.shape[1], *shape, dtype=torch.float64)
    for k, c, i, j in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        x1, y1 = (ROIS[k, 1:3] * SCALE).tolist()
        x2, y2 = ((ROIS[k, 3:] + 1) * SCALE).tolist()
        top, bottom = y1 + i * (y2 - y1) / shape[0], y1 + (i + 1) * (y2 - y1) / shape[0]
        left, right = x1 + j * (x2 - x1) / shape[1], x1 + (j + 1) * (x2 - x1) / shape[1]
        touched = []
        for y in range(features.shape[2]):
            for x in range(features.shape[3]):
                if y + 1 > math.floor(top) + 0.5 and y < math.ceil(bottom) and x >= math.floor(left) and x < right:
                    touched.append(float(features[int(ROIS[k, 0]), c, y, x]))
        output[k, c, i, j] = max(touched, default=0)
    return output


def test_roi_pool(ops, features):
    layer = ops.RoIPool((3, 2), SCALE)
    torch.testing.assert_close(layer(features, ROIS), roi_pooled(features, (3, 2)))
    assert gradcheck(lambda x: layer(x, ROIS), features.requires_grad_())


def test_roi_pool_gives_the_gradient_to_the_first_of_equal_pixels(ops):
    flat = torch.ones(1, 1, 4, 4, requires_grad=True)
    rois = torch.tensor([[0, 0, 0, 3.0, 3.0], [0, 9, 9, 5.0, 5.0]])
    output = ops.roi_pool(flat, rois, (1, 2), 1.0)
    assert output.flatten().tolist() == [1, 1, 0, 0], 'a region that ends before it begins gives 0'
    output.sum().backward()
    assert flat.grad[0, 0].tolist() == [[1, 0, 1, 0], [0] * 4, [0] * 4, [0] * 4]


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool(ops, features, ratio):
    gamma = 0.1
    offset = torch.randn(len(ROIS), 2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = ops.DeformRoIPool((3, 2), SCALE, ratio, gamma)
    expected = pooled(features, (3, 2), ratio, True, mean, offset * gamma)
    torch.testing.assert_close(layer(features, ROIS, offset), expected)
    torch.testing.assert_close(layer(features, ROIS), pooled(features, (3, 2), ratio, True, mean))
    features.requires_grad_()
    assert gradcheck(lambda x, o: layer(x, ROIS, o), (features, offset.requires_grad_()))
    assert gradcheck(lambda x: layer(x, ROIS), features)
