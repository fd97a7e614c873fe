"""The residual branch of a block as one autograd function: less memory and, on CPUs, faster kernels.

The function computes what :meth:`Block.forward` computes op by op (the eager path), for V1 blocks::

    out = x + scale * gamma * (GELU(LN(dwconv(x)) @ W1.T + b1) @ W2.T + b2)

- ``gamma`` and the scale of stochastic depth are folded into the second Linear, so that neither its output nor those of
  GELU and LayerNorm are kept: 12 bytes a token and channel in bf16 (the input, the outputs of the depthwise convolution
  and of the first Linear), or 4 with the first Linear computed again (``lean``), where plain autograd keeps 26.
- Samples that stochastic depth drops are not computed.
- On CPUs the matrix products of fp32 go through oneDNN where that is faster than PyTorch's default BLAS on this
  processor, and the weight gradient of the depthwise convolution is computed in slices that oneDNN has a kernel for.
"""
from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

SWITCH = 'CONVNEXT_DENSE_KERNELS'
SLICE = 3  # oneDNN's fast depthwise kernels take widths up to 3


def enabled(device: torch.device) -> bool:
    """Whether blocks may run as one function: not if switched off, nor while another tool records the operations."""
    return (os.environ.get(SWITCH) != 'eager' and device.type in ('cpu', 'cuda') and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export() and not is_in_torch_dispatch_mode())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """(..., I), (O, I), (O,) -> (..., O), with GELU behind it if asked for."""
    if _onednn_is_faster(x.device.type, x.dtype, torch.get_num_threads()):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'gelu' if gelu else 'none', [], 'none')
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


@functools.cache
def _onednn_is_faster(device: str, dtype: torch.dtype, threads: int) -> bool:
    """Measured once a process, in some 50 ms: BLAS libraries differ by a factor of two between processors."""
    if device != 'cpu' or dtype != torch.float32 or not hasattr(torch.ops.mkldnn, '_linear_pointwise') \
            or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    x, weight, bias = torch.ones(1024, 384), torch.ones(1536, 384), torch.ones(1536)

    def seconds(function) -> float:
        function()
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    with torch.no_grad():
        stock, onednn = zip(*((
            seconds(lambda: F.linear(x, weight, bias)),
            seconds(lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], 'none')))
            for _ in range(5)))
    return min(onednn) < 0.95 * min(stock)


def depthwise_weight_grad(x: Tensor, grad: Tensor, weight: Tensor, padding: int, dilation: int
                          ) -> tuple[Tensor, Tensor]:
    """Gradients of weight (C, 1, k, k) and bias (C,) of a depthwise convolution at stride 1.

    Args:
        x, grad: (N, C, H, W), input and gradient of the output.
        weight: Only its shape counts.
    """
    side, width = weight.shape[-1], grad.shape[-1]
    options = ([weight.shape[0]], [1, 1], [0, 0], [dilation, dilation], False, [0, 0], weight.shape[0])
    if x.device.type != 'cpu' or side <= SLICE or dilation > 1 or x.dtype not in (torch.float32, torch.bfloat16):
        options[2][:] = [padding, padding]
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, *options, [False, True, True])
        return grad_weight, grad_bias
    padded = F.pad(x, (padding, padding, padding, padding))
    parts, grad_bias = [], None
    for left in range(0, side, SLICE):
        columns = weight[..., left:left + SLICE]
        part = padded[..., left:left + width + columns.shape[-1] - 1].contiguous(memory_format=torch.channels_last)
        _, grad_columns, bias = torch.ops.aten.convolution_backward(
            grad, part, columns.contiguous(), *options, [False, True, left == 0])
        parts.append(grad_columns)
        grad_bias = bias if left == 0 else grad_bias
    return torch.cat(parts, dim=-1), grad_bias


def _matmul_grads(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``y = x @ weight.T``: (..., O), (..., I), (O, I) -> gradients of x and weight."""
    flat, rows = grad.flatten(0, -2), x.flatten(0, -2)
    if _onednn_is_faster(grad.device.type, grad.dtype, torch.get_num_threads()):
        return linear(grad, weight.t()), linear(rows.t(), flat.t()).t()
    return grad @ weight, flat.t() @ rows


class ResidualBranch(torch.autograd.Function):
    """``x + branch(x)`` for the samples in ``kept``, ``x`` for the others; see the top of this file."""

    @staticmethod
    def forward(ctx, x: Tensor, kept: Tensor | None, scale: float, lean: bool, eps: float, padding: int, dilation: int,
                dtype: torch.dtype, *params: Tensor | None) -> Tensor:
        """
        Args:
            x: (N, C, H, W) in channels_last memory.
            kept: Numbers of the samples to compute, on the device of x; None is all.
            scale: Factor of the branch, ``1 / (1 - rate)`` of stochastic depth.
            lean: Keep nothing of the size of the hidden layer.
            dtype: What to compute in; x, the sum and the parameters keep theirs.
            params: Of the depthwise convolution, LayerNorm, first and second Linear (weight and bias each), and gamma.
        """
        ctx.options = scale, lean, eps, padding, dilation, dtype, x.dtype
        if kept is not None and not len(kept):
            ctx.save_for_backward(None, kept, None, None, *params)
            return x.to(_sum_dtype(x, params), copy=True)
        conv_w, conv_b, norm_w, norm_b, w1, b1, w2, b2, gamma = params
        inside = (x if kept is None else x[kept]).to(dtype).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):
            u = _depthwise(inside, conv_w.to(dtype), conv_b.to(dtype), padding, dilation)
            normed = F.layer_norm(u, norm_w.shape, norm_w.to(dtype), norm_b.to(dtype), eps)
            hidden = linear(normed, w1.to(dtype), b1.to(dtype))
            y = linear(F.gelu(hidden), *fold(w2, b2, gamma, scale, dtype)).permute(0, 3, 1, 2)
        ctx.save_for_backward(inside, kept, u, None if lean else hidden, *params)
        x = x.to(_sum_dtype(x, params))
        return x + y if kept is None else x.index_add(0, kept, y.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        scale, lean, eps, padding, dilation, dtype, x_dtype = ctx.options
        inside, kept, u, hidden, *params = ctx.saved_tensors
        conv_w, conv_b, norm_w, norm_b, w1, b1, w2, b2, gamma = params
        if inside is None:  # DDP waits for a gradient of every parameter
            return (grad_out.to(x_dtype), *[None] * 7, *(None if p is None else torch.zeros_like(p) for p in params))
        grad = (grad_out if kept is None else grad_out[kept]).to(dtype)
        grad = grad.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        with torch.autocast(grad.device.type, enabled=False):
            normed, mean, rstd = torch.native_layer_norm(u, norm_w.shape, norm_w.to(dtype), norm_b.to(dtype), eps)
            if lean:
                hidden = linear(normed, w1.to(dtype), b1.to(dtype))
            folded_w, _ = fold(w2, b2, gamma, scale, dtype)
            grad_active, grad_folded = _matmul_grads(grad, F.gelu(hidden), folded_w)
            grad_folded = grad_folded.to(w2.dtype)
            grad_folded_b = grad.sum(dim=(0, 1, 2), dtype=torch.float32 if dtype.itemsize < 4 else None).to(b2.dtype)
            grad_hidden = torch.ops.aten.gelu_backward(grad_active, hidden)
            del grad_active, hidden
            grad_normed, grad_w1 = _matmul_grads(grad_hidden, normed, w1.to(dtype))
            grad_b1 = grad_hidden.sum(dim=(0, 1, 2), dtype=torch.float32 if dtype.itemsize < 4 else None)
            grad_u, grad_norm_w, grad_norm_b = torch.ops.aten.native_layer_norm_backward(
                grad_normed, u, norm_w.shape, mean, rstd, norm_w.to(dtype), norm_b.to(dtype), [True, True, True])
            grad_u = grad_u.permute(0, 3, 1, 2)
            grad_inside, _, _ = torch.ops.aten.convolution_backward(
                grad_u, inside, conv_w.to(dtype), None, [1, 1], [padding] * 2, [dilation] * 2, False, [0, 0],
                inside.shape[1], [True, False, False])
            grad_conv_w, grad_conv_b = depthwise_weight_grad(inside, grad_u, conv_w, padding, dilation)
        grad_x = grad_out + grad_inside if kept is None else \
            grad_out.index_add(0, kept, grad_inside.to(grad_out.dtype))
        grad_gamma, factor, column = None, scale, scale
        if gamma is not None:  # never divides by gamma, which may be 0
            grad_gamma = (scale * ((w2 * grad_folded).sum(1) + b2 * grad_folded_b)).to(gamma.dtype)
            factor = scale * gamma
            column = factor[:, None]
        grads = (grad_conv_w, grad_conv_b, grad_norm_w, grad_norm_b, grad_w1, grad_b1, grad_folded * column,
                 grad_folded_b * factor)
        return (grad_x.to(x_dtype), *[None] * 7, *(g.to(p.dtype) for g, p in zip(grads, params)), grad_gamma)


def _sum_dtype(x: Tensor, params: Sequence[Tensor | None]) -> torch.dtype:
    """As in the eager path under autocast: parameters of fp32 lift the residual stream to fp32."""
    return torch.promote_types(x.dtype, params[0].dtype)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, padding: int, dilation: int) -> Tensor:
    """(N, C, H, W) in channels_last memory -> (N, H, W, C)."""
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1]).permute(0, 2, 3, 1)


def fold(weight: Tensor, bias: Tensor, gamma: Tensor | None, scale: float, dtype: torch.dtype
         ) -> tuple[Tensor, Tensor]:
    """Weight (O, I) and bias (O,) of a Linear with ``scale * gamma`` times its output."""
    if gamma is None:
        return (weight * scale).to(dtype), (bias * scale).to(dtype)
    return (weight * (scale * gamma)[:, None]).to(dtype), (bias * (scale * gamma)).to(dtype)


@torch.no_grad()
def infer(x: Tensor, params: Sequence[Tensor], eps: float, padding: int, dilation: int, dtype: torch.dtype) -> Tensor:
    """``x + branch(x)`` in ``dtype``, with parameters that are cast and folded already; (N, C, H, W), channels_last."""
    conv_w, conv_b, norm_w, norm_b, w1, b1, w2, b2 = params
    with torch.autocast(x.device.type, enabled=False):
        u = _depthwise(x.to(w1.dtype), conv_w, conv_b, padding, dilation)
        normed = F.layer_norm(u, norm_w.shape, norm_w, norm_b, eps)
        return x.to(dtype) + linear(linear(normed, w1, b1, gelu=True), w2, b2).permute(0, 3, 1, 2)
