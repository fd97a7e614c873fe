"""Operators that sample features at learned positions: deformable convolution and deformable attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_dense.mmcv_ops.numerics import fill_if_not_finite, operator, torchvision_operators, wide


@operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Convolve at shifted positions; torchvision's operator. Source: https://arxiv.org/abs/1703.06211.

    Args:
        input: (n, c, h, w).
        weight: (o, c / group, kH, kW).
        offset: (n, 2 * deformable_group * kH * kW, h', w'), pairs of y and x.
        output: (n, o, h', w'), written here.
        columns: Scratch of the compiled operator.
        ones: Scratch of the compiled operator.
        kW: Width of the kernel.
        kH: Height of the kernel.
        dW: Stride along x.
        dH: Stride along y.
        padW: Padding along x.
        padH: Padding along y.
        dilationW: Dilation along x.
        dilationH: Dilation along y.
        group: Number of groups of channels of the convolution.
        deformable_group: Number of groups of channels with offsets of their own.
        im2col_step: Images in one piece of work of the compiled operator; no part of the result.
    """
    if fill_if_not_finite(offset, output):
        return
    tensors = convolution_tensors(input, weight, offset, None, None)
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
    output.copy_(torchvision_operators().deform_conv2d(*tensors, *sizes))


@operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of input and offset.

    torchvision gives that of the weight at the same time. It is left in ``columns``, the scratch that this call shares
    with ``deform_conv_backward_parameters``.
    """
    if fill_if_not_finite(offset, gradInput, gradOffset, columns.resize_(weight.shape)):
        return
    tensors = convolution_tensors(input, weight, offset, None, None)
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
    grads = torchvision_operators()._deform_conv2d_backward(wide(gradOutput), *tensors, *sizes)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])
    columns.resize_(weight.shape).copy_(grads[1])


@operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add the gradient of the weight, times ``scale``, to ``gradWeight``."""
    if fill_if_not_finite(offset, gradWeight):
        return
    if columns.shape != gradWeight.shape:
        # Neither input nor offset needed a gradient. That of the weight does not depend on its values.
        tensors = convolution_tensors(input, torch.zeros_like(gradWeight), offset, None, None)
        sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
        columns = torchvision_operators()._deform_conv2d_backward(wide(gradOutput), *tensors, *sizes)[1]
    gradWeight.add_(columns.to(gradWeight.dtype), alpha=scale)


@operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Convolve at shifted positions with a factor for each; torchvision's operator.

    Source: https://arxiv.org/abs/1811.11168.

    Args:
        input: (n, c, h, w).
        weight: (o, c / group, kernel_h, kernel_w).
        bias: (o,), or anything where ``with_bias`` is false.
        ones: Scratch of the compiled operator.
        offset: (n, 2 * deformable_group * kernel_h * kernel_w, h', w'), pairs of y and x; see :func:`first_values`.
        mask: (n, deformable_group * kernel_h * kernel_w, h', w'), the factors; see :func:`first_values`.
        output: (n, o, h', w'), written here.
        columns: Scratch of the compiled operator.
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        stride_h: Stride along y.
        stride_w: Stride along x.
        pad_h: Padding along y.
        pad_w: Padding along x.
        dilation_h: Dilation along y.
        dilation_w: Dilation along x.
        group: Number of groups of channels of the convolution.
        deformable_group: Number of groups of channels with offsets of their own.
        with_bias: Add ``bias``.
    """
    offset, mask = first_values(offset, output), first_values(mask, output)
    if fill_if_not_finite(offset, output):
        return
    tensors = convolution_tensors(input, weight, offset, mask, bias if with_bias else None)
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True)
    output.copy_(torchvision_operators().deform_conv2d(*tensors, *sizes))


@operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write all gradients; that of the bias where ``with_bias``."""
    offset, mask = first_values(offset, grad_output), first_values(mask, grad_output)
    if fill_if_not_finite(offset, grad_input, grad_weight, grad_bias, grad_offset, grad_mask):
        return
    tensors = convolution_tensors(input, weight, offset, mask, bias if with_bias else None)
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True)
    grads = torchvision_operators()._deform_conv2d_backward(wide(grad_output), *tensors, *sizes)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    grad_offset.copy_(zeros_behind(grads[2], grad_offset))
    grad_mask.copy_(zeros_behind(grads[3], grad_mask))
    if with_bias:
        grad_bias.copy_(grads[4])


def first_values(values: Tensor, output: Tensor) -> Tensor:
    """Take from a map that is larger than the output as many values of each image as the output needs, in memory order.

    The compiled operator does that without a word, and DyHead depends on it: it convolves a map of half the size with
    the offsets and factors of the map above (``spatial_conv_high``).

    Args:
        values: (n, channels, h, w).
        output: (n, o, h', w').

    Returns:
        (n, channels, h', w'); ``values`` where that is no less than it has.
    """
    shape = (*values.shape[:2], *output.shape[2:])
    count = math.prod(shape[1:])
    if count >= math.prod(values.shape[1:]):
        return values
    return values.flatten(1)[:, :count].reshape(shape)


def zeros_behind(grads: Tensor, values: Tensor) -> Tensor:
    """Gradients of :func:`first_values` in the shape of ``values``: those that were not taken have none."""
    if grads.shape == values.shape:
        return grads
    return F.pad(grads.flatten(1), (0, math.prod(values.shape[1:]) - math.prod(grads.shape[1:]))).view(values.shape)


def convolution_tensors(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> list[Tensor]:
    """Tensors in the order and with the stand-ins that torchvision wants: no mask is an empty one, no bias zeros."""
    features = wide(input)
    if mask is None:
        mask = features.new_zeros(len(input), 0)
    if bias is None:
        bias = features.new_zeros(len(weight))
    return [features, wide(weight), wide(offset), wide(mask), wide(bias)]


@operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sum features at sampled positions of several maps. Source: https://arxiv.org/abs/2010.04159.

    Args:
        value: (n, k, heads, d), the positions of all maps one after the other.
        value_spatial_shapes: (maps, 2), height and width.
        value_level_start_index: (maps,), the first position of each map.
        sampling_locations: (n, q, heads, maps, points, 2), x and y from 0 to 1.
        attention_weights: (n, q, heads, maps, points).
        im2col_step: Images in one piece of work of the compiled operator; no part of the result.

    Returns:
        (n, q, heads * d).
    """
    num, _, heads, dim = value.shape
    output = wide(value).new_zeros(num, sampling_locations.shape[1], heads * dim)
    for level, (height, width), start in attention_maps(value_spatial_shapes, value_level_start_index):
        features = wide(value[:, start : start + height * width])
        locations, weights = wide(sampling_locations[:, :, :, level]), wide(attention_weights[:, :, :, level])
        output += attend(features, (height, width), locations, weights)
    return output.to(value.dtype)


@operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of values, locations and weights, map by map: each map is computed once more."""
    for level, (height, width), start in attention_maps(value_spatial_shapes, value_level_start_index):
        span = slice(start, start + height * width)
        features = wide(value[:, span]).detach().requires_grad_()
        locations = wide(sampling_locations[:, :, :, level]).detach().requires_grad_()
        weights = wide(attention_weights[:, :, :, level]).detach().requires_grad_()
        with torch.enable_grad():
            output = attend(features, (height, width), locations, weights)
        grads = torch.autograd.grad(output, (features, locations, weights), wide(grad_output))
        grad_value[:, span] = grads[0].to(grad_value.dtype)
        grad_sampling_loc[:, :, :, level] = grads[1].to(grad_sampling_loc.dtype)
        grad_attn_weight[:, :, :, level] = grads[2].to(grad_attn_weight.dtype)


def attention_maps(shapes: Tensor, starts: Tensor) -> list[tuple[int, tuple[int, int], int]]:
    """Number, height and width, and first position of each map."""
    maps = []
    for level, ((height, width), start) in enumerate(zip(shapes.tolist(), starts.tolist())):
        maps.append((level, (height, width), start))
    return maps


def attend(features: Tensor, size: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
    """One map's part of the attention; outside of the map is zero.

    Args:
        features: (n, h * w, heads, d).
        size: h and w.
        locations: (n, q, heads, points, 2).
        weights: (n, q, heads, points).

    Returns:
        (n, q, heads * d).
    """
    num, _, heads, dim = features.shape
    images = features.permute(0, 2, 3, 1).reshape(num * heads, dim, *size)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    sampled = F.grid_sample(images, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    summed = (sampled * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return summed.view(num, heads * dim, -1).transpose(1, 2)
