"""Operators that pool features in regions of interest (image, x1, y1, x2, y2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext_dense.mmcv_ops.numerics import fill_if_not_finite, operator, torchvision_operators, wide

MAX = 0


@operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool bilinear samples in the bins of each region. Source: https://arxiv.org/abs/1703.06870.

    The mean is torchvision's RoIAlign. For the maximum of a bin without samples this gives 0, where mmcv gives the
    number with which its search begins.

    Args:
        input: (n, c, h, w).
        rois: (k, 5).
        output: (k, c, aligned_height, aligned_width), written here.
        argmax_y: As ``output`` for the maximum, then written here: where the sample lies; unused for the mean.
        argmax_x: Likewise.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: Factor from coordinates of the regions to those of the features.
        sampling_ratio: Samples of a bin along each side; 0: as many as it has pixels, rounded up.
        pool_mode: 0: maximum; 1: mean.
        aligned: Pixels lie at half coordinates, and regions may be smaller than a pixel.
    """
    if fill_if_not_finite(rois, output, *([argmax_y, argmax_x] if pool_mode == MAX else [])):
        return
    if pool_mode != MAX:
        sizes = (spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
        output.copy_(torchvision_operators().roi_align(wide(input), wide(rois), *sizes))
        return
    output.zero_()
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    shape = (aligned_height, aligned_width)
    for group in grids(wide(rois), shape, spatial_scale, sampling_ratio, aligned):
        best = output.new_full((len(group.index), input.shape[1], *shape), -math.inf, dtype=wide(input).dtype)
        best_y, best_x = torch.full_like(best, -1), torch.full_like(best, -1)
        for y, x in group.samples():
            value = bilinear(wide(input), group.image, y, x)
            better = value > best
            best = torch.where(better, value, best)
            best_y = torch.where(better, y[:, None], best_y)
            best_x = torch.where(better, x[:, None], best_x)
        output[group.index] = best.to(output.dtype)
        argmax_y[group.index] = best_y.to(argmax_y.dtype)
        argmax_x[group.index] = best_x.to(argmax_x.dtype)


@operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the input; arguments as above."""
    if fill_if_not_finite(rois, grad_input):
        return
    grad = wide(grad_output)
    if pool_mode != MAX:
        sizes = (spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned)
        grad_input.copy_(torchvision_operators()._roi_align_backward(grad, wide(rois), *sizes))
        return
    height, width = grad_input.shape[2:]
    total = torch.zeros_like(grad_input, dtype=grad.dtype).flatten()
    # The first pixel of the plane of each value, (k, c, 1, 1).
    plane = rois[:, :1].long() * grad_input.shape[1] + torch.arange(grad_input.shape[1], device=rois.device)
    plane = plane[:, :, None, None] * (height * width)
    found = argmax_y != -1
    for pixel, weight in corners(wide(argmax_y), wide(argmax_x), height, width):
        total.index_add_(0, (plane + pixel).flatten(), (grad * weight * found).flatten())
    grad_input.copy_(total.view(grad_input.shape))


@operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the maximum of the pixels that each bin of a region touches. Source: https://arxiv.org/abs/1504.08083.

    Not torchvision's, which rounds the regions to pixels first.

    Args:
        input: (n, c, h, w).
        rois: (k, 5), the last pixel belongs to the region.
        output: (k, c, pooled_height, pooled_width), written here; 0 for an empty bin.
        argmax: As ``output``, written here: the number of the pixel in its plane, -1 for an empty bin.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Factor from coordinates of the regions to those of the features.
    """
    if fill_if_not_finite(rois, output):
        return
    height, width = input.shape[2:]
    output.zero_()
    argmax.fill_(-1)
    regions = wide(rois)
    start, end = regions[:, 1:3] * spatial_scale, (regions[:, 3:] + 1) * spatial_scale
    bins_x = pixel_bins(start[:, 0], end[:, 0], pooled_width, width)
    bins_y = pixel_bins(start[:, 1], end[:, 1], pooled_height, height)
    has_area = (end > start).all(1).tolist()
    for k, image in enumerate(regions[:, 0].long().tolist()):
        (x0, x1), (y0, y1) = extent(bins_x[k]), extent(bins_y[k])
        if not has_area[k] or x0 >= x1 or y0 >= y1:
            continue
        # Of equal pixels the first in reading order: the first column of each row, then the first row.
        pixels = wide(input[image, :, None, y0:y1, x0:x1])
        in_column = members(bins_x[k], x0, x1)[:, None]
        row_best, column = pixels.masked_fill(~in_column, -math.inf).max(3)
        in_row = members(bins_y[k], y0, y1)[:, None]
        best, row = row_best[:, None].masked_fill(~in_row, -math.inf).max(3)
        column = column[:, None].expand(-1, pooled_height, -1, -1).gather(3, row[..., None])[..., 0]
        filled = in_row.any(2) & in_column.any(2).T
        output[k] = torch.where(filled, best, 0).to(output.dtype)
        argmax[k] = torch.where(filled, (row + y0) * width + column + x0, -1).to(argmax.dtype)


@operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of the input; arguments as above."""
    if fill_if_not_finite(rois, grad_input):
        return
    num, channels, height, width = grad_input.shape
    grad = wide(grad_output)
    total = grad.new_zeros(num * channels, height * width).flatten()
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    pixel = plane[:, :, None, None] * (height * width) + argmax.clamp(min=0)
    total.index_add_(0, pixel.flatten(), grad.masked_fill(argmax < 0, 0).flatten())
    grad_input.copy_(total.view(grad_input.shape))


def pixel_bins(start: Tensor, end: Tensor, num_bins: int, size: int) -> Tensor:
    """First pixel and the one after the last of each bin, clipped to 0 ... size: (k, num_bins, 2)."""
    step = (end - start) / num_bins
    numbers = torch.arange(num_bins, device=start.device)
    first = (numbers * step[:, None] + start[:, None]).floor()
    last = ((numbers + 1) * step[:, None] + start[:, None]).ceil()
    return torch.stack((first, last), dim=2).clamp(0, size).long()


def extent(bins: Tensor) -> tuple[int, int]:
    """First pixel of the first of these bins and the one after the last of the last."""
    return int(bins[0, 0]), int(bins[-1, 1])


def members(bins: Tensor, first: int, last: int) -> Tensor:
    """(bins, pixels): whether each pixel from first to before last is in each bin."""
    pixel = torch.arange(first, last, device=bins.device)
    return (pixel >= bins[:, :1]) & (pixel < bins[:, 1:])


@operator
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Pool as the mean of RoIAlign with a shift for each bin. Source: https://arxiv.org/abs/1703.06211.

    Args:
        input: (n, c, h, w).
        rois: (k, 5).
        offset: (k, 2, pooled_height, pooled_width), x and y in units of gamma times the region, or empty.
        output: (k, c, pooled_height, pooled_width), written here.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Factor from coordinates of the regions to those of the features.
        sampling_ratio: Samples of a bin along each side; 0: as many as it has pixels, rounded up.
        gamma: Factor of the offsets.
    """
    if fill_if_not_finite(torch.cat((rois.flatten(), offset.flatten())), output):
        return
    output.zero_()
    shape = (pooled_height, pooled_width)
    for group in grids(wide(rois), shape, spatial_scale, sampling_ratio, aligned=True):
        shift = wide(offset)[group.index] * gamma if offset.numel() else None
        output[group.index] = shifted_mean(wide(input), group, shift).to(output.dtype)


@operator
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the gradients of input and offset.

    Those of the offset are the derivatives of what the forward pass computes. mmcv's differ for samples in the half
    pixel around the image, whose values do not change across the edge.
    """
    if fill_if_not_finite(torch.cat((rois.flatten(), offset.flatten())), grad_input, grad_offset):
        return
    features = wide(input).detach().requires_grad_()
    total = torch.zeros_like(features)
    shape = (pooled_height, pooled_width)
    for group in grids(wide(rois), shape, spatial_scale, sampling_ratio, aligned=True):
        grad = wide(grad_output)[group.index]
        if not offset.numel():
            with torch.enable_grad():
                mean = shifted_mean(features, group, None)
            total += torch.autograd.grad(mean, features, grad)[0]
            continue
        moves = wide(offset)[group.index].detach().requires_grad_()
        with torch.enable_grad():
            mean = shifted_mean(features, group, moves * gamma)
        feature_grad, move_grad = torch.autograd.grad(mean, (features, moves), grad)
        total += feature_grad
        grad_offset[group.index] = move_grad.to(grad_offset.dtype)
    grad_input.copy_(total)


@dataclass
class Grid:
    """Regions whose bins have equally many samples: numbers and images, starts, sizes of bins, counts, (k,)."""

    index: Tensor
    image: Tensor
    start: Tensor
    step: Tensor
    count: tuple[int, int]
    shape: tuple[int, int]

    def samples(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Coordinates y and x of one sample of every bin, (k, rows, columns), for one sample after the other."""
        rows = torch.arange(self.shape[0], device=self.start.device)[:, None]
        columns = torch.arange(self.shape[1], device=self.start.device)
        (start_y, start_x), (step_y, step_x) = self.start.T[..., None, None], self.step.T[..., None, None]
        full = start_y.new_zeros(1, *self.shape)
        for iy in range(self.count[0]):
            y = start_y + rows * step_y + (iy + 0.5) * step_y / self.count[0]
            for ix in range(self.count[1]):
                x = start_x + columns * step_x + (ix + 0.5) * step_x / self.count[1]
                yield y + full, x + full


def grids(
    rois: Tensor, shape: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[Grid]:
    """Sort regions by the number of samples of their bins; those whose bins have none are left out."""
    shift = 0.5 if aligned else 0.0
    start = rois[:, [2, 1]] * spatial_scale - shift
    size = rois[:, [4, 3]] * spatial_scale - shift - start
    if not aligned:
        size = size.clamp(min=1)
    step = size / size.new_tensor(shape)
    if sampling_ratio > 0:
        counts = torch.full_like(step, sampling_ratio, dtype=torch.long)
    else:
        counts = step.ceil().long()
    for count in counts.unique(dim=0):
        if (count <= 0).any():
            continue
        index = (counts == count).all(1).nonzero()[:, 0]
        yield Grid(index, rois[index, 0].long(), start[index], step[index], (int(count[0]), int(count[1])), shape)


def shifted_mean(features: Tensor, group: Grid, shift: Tensor | None) -> Tensor:
    """(k, c, rows, columns): mean of the samples of each bin, moved by ``shift`` times the size of the region."""
    total = features.new_zeros(len(group.index), features.shape[1], *group.shape)
    for y, x in group.samples():
        if shift is not None:
            size_y, size_x = (group.step * group.step.new_tensor(group.shape)).T[..., None, None]
            y, x = y + shift[:, 1] * size_y, x + shift[:, 0] * size_x
        total = total + bilinear(features, group.image, y, x)
    return total / (group.count[0] * group.count[1])


def bilinear(features: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate features (n, c, h, w) of the images (k,) at positions (k, rows, columns): (k, c, rows, columns)."""
    height, width = features.shape[2:]
    pixels = features.flatten(2).transpose(1, 2)
    total = features.new_zeros(())
    for pixel, weight in corners(y, x, height, width):
        total = total + pixels[image[:, None, None], pixel] * weight[..., None]
    return total.permute(0, 3, 1, 2)


def corners(y: Tensor, x: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the four pixels around each position and their weights.

    Up to a pixel outside, a position takes the values at the edge; further out its weights are 0.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = torch.where(inside, y, 0).clamp(0, height - 1)
    x = torch.where(inside, x, 0).clamp(0, width - 1)
    top, left = y.detach().long(), x.detach().long()
    below, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    low_y, low_x = y - top, x - left
    high_y, high_x = 1 - low_y, 1 - low_x
    return [
        (top * width + left, high_y * high_x * inside),
        (top * width + right, high_y * low_x * inside),
        (below * width + left, low_y * high_x * inside),
        (below * width + right, low_y * low_x * inside),
    ]
