"""Operators that move features by index: CARAFE, point-wise spatial attention and masked convolution."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_dense.mmcv_ops.numerics import operator, wide


@operator
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Upsample with a kernel for each output position. Source: https://arxiv.org/abs/1905.02188.

    Args:
        features: (n, c, h, w).
        masks: (n, group_size * kernel_size ** 2, h * scale_factor, w * scale_factor), the kernels.
        output: (n, c, h * scale_factor, w * scale_factor), written here.
        kernel_size: Side of the kernels, odd.
        group_size: Number of groups of channels with kernels of their own.
        scale_factor: Side of the square of output positions of one input position.
    """
    kernels = as_cells(wide(masks), group_size, scale_factor)
    total = torch.zeros_like(as_cells(output, group_size, scale_factor), dtype=kernels.dtype)
    for tap, patch in taps(wide(features), kernel_size, group_size):
        total += patch * kernels[:, :, tap : tap + 1]
    output.copy_(total.reshape(output.shape))


@operator
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features, ``bottom_grad``, and kernels, ``mask_grad``."""
    kernels = as_cells(wide(masks), group_size, scale_factor)
    grad = as_cells(wide(top_grad), group_size, scale_factor)
    kernel_grads = torch.zeros_like(kernels)
    num, channels, height, width = features.shape
    radius = kernel_size // 2
    padded = grad.new_zeros(num, channels, height + 2 * radius, width + 2 * radius)
    for tap, patch in taps(wide(features), kernel_size, group_size):
        kernel_grads[:, :, tap] = (patch * grad).sum(2)
        row, column = divmod(tap, kernel_size)
        part = (kernels[:, :, tap : tap + 1] * grad).sum((4, 6)).reshape(features.shape)
        padded[:, :, row : row + height, column : column + width] += part
    bottom_grad.copy_(padded[:, :, radius : radius + height, radius : radius + width])
    mask_grad.copy_(kernel_grads.reshape(masks.shape))


@operator
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Upsample as above. mmcv keeps ``rfeatures`` for the backward pass; ours are the features as they are."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@operator
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and kernels; the tensors whose names begin with ``r`` are scratch."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def as_cells(tensor: Tensor, groups: int, scale: int) -> Tensor:
    """(n, groups * c, h * scale, w * scale) as (n, groups, c, h, scale, w, scale): a cell for each input position."""
    num, channels, height, width = tensor.shape
    return tensor.reshape(num, groups, channels // groups, height // scale, scale, width // scale, scale)


def taps(features: Tensor, kernel_size: int, groups: int) -> Iterator[tuple[int, Tensor]]:
    """For each tap of the kernel, the features under it: (n, groups, c / groups, h, 1, w, 1), zero outside."""
    height, width = features.shape[2:]
    padded = F.pad(features, [kernel_size // 2] * 4)
    for tap in range(kernel_size**2):
        row, column = divmod(tap, kernel_size)
        under = padded[:, :, row : row + height, column : column + width]
        yield tap, as_cells(under, groups, 1)


@operator
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Turn attention at relative positions into attention at positions. Source: PSANet, ECCV 2018.

    Args:
        input: (n, h_mask * w_mask, h_feature, w_feature), for each position an attention map centred on it.
        output: (n, h_feature * w_feature, h_feature, w_feature), written here.
        psa_type: 0, collect: channel t at position s holds what s attends to at t; 1, distribute: channel s at
            position t holds it.
        num_: n.
        h_feature: Height.
        w_feature: Width.
        h_mask: Height of the attention maps.
        w_mask: Width of the attention maps.
        half_h_mask: Row of the centre of the attention maps.
        half_w_mask: Column of the centre of the attention maps.
    """
    cell, inside = relative_cells(input, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    flat = input.flatten(2)
    attention = flat.gather(1, cell.expand(len(flat), -1, -1)).masked_fill(~inside, 0)
    if psa_type == 1:
        attention = attention.transpose(1, 2)
    output.copy_(attention.reshape(output.shape))


@operator
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of the input; arguments as above."""
    cell, inside = relative_cells(grad_input, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    grad = grad_output.flatten(2)
    if psa_type == 1:
        grad = grad.transpose(1, 2)
    flat = torch.zeros_like(grad_input.flatten(2))
    # No two values meet in one place, apart from the zeros of cells outside.
    flat.scatter_add_(1, cell.expand(len(flat), -1, -1), grad.masked_fill(~inside, 0))
    grad_input.copy_(flat.view_as(grad_input))


def relative_cells(
    like: Tensor, height: int, width: int, h_mask: int, w_mask: int, half_h: int, half_w: int
) -> tuple[Tensor, Tensor]:
    """Where position t lies in the attention map centred on position s: two tensors (t, s).

    Returns:
        The number of the cell, 0 where it lies outside, and whether it lies inside.
    """
    rows = torch.arange(height, device=like.device).repeat_interleave(width)
    columns = torch.arange(width, device=like.device).repeat(height)
    row = rows[:, None] - rows + half_h
    column = columns[:, None] - columns + half_w
    inside = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    return torch.where(inside, row * w_mask + column, 0), inside


@operator
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the patches under the kernel at the given positions into ``col``.

    Args:
        im: (1, c, h, w), padded with zeros.
        mask_h_idx: (p,), rows of the output.
        mask_w_idx: (p,), columns of the output.
        col: (c * kernel_h * kernel_w, p).
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        pad_h: Padding along y.
        pad_w: Padding along x.
    """
    # A position of the output may lie so far out that its patch leaves the padded image: pad a whole kernel.
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    patches = []
    for row in range(kernel_h):
        for column in range(kernel_w):
            patches.append(padded[:, mask_h_idx + row, mask_w_idx + column])
    col.copy_(torch.stack(patches, dim=1).flatten(0, 1))


@operator
def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write the columns of ``col``, (channels, p), to the given positions of ``im``, (1, channels, height, width)."""
    im[0][:, mask_h_idx, mask_w_idx] = col
