"""The residual branch of a block as one autograd function: less memory and, on CPUs, faster kernels.

The function computes what :meth:`Block.forward` computes op by op (the eager path), for V1 blocks::

    out = x + scale * gamma * (GELU(LN(dwconv(x)) @ W1.T + b1) @ W2.T + b2)

- ``gamma`` and the scale of stochastic depth are folded into the second Linear, so that neither its output nor those of
  GELU and LayerNorm are kept: 12 bytes a token and channel in bf16 (the input, the outputs of the depthwise convolution
  and of the first Linear), or 4 with the first Linear computed again (``lean``), where plain autograd keeps 26.
- Samples that stochastic depth drops are not computed.
- On CPUs the matrix products go through oneDNN where that is faster than PyTorch's default BLAS on this processor, the
  hidden layer is computed in parts that fit into the cache, and the weight gradient of the depthwise convolution in
  slices that oneDNN has a kernel for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from convnext_dense.models.cpu_operators import (
    CHUNK,
    CHUNK_TO_KEEP,
    _chunks,
    depthwise_weight_grad,
    linear,
    linear_weight_grad,
)

SWITCH = 'CONVNEXT_DENSE_KERNELS'


def enabled(device: torch.device) -> bool:
    """Whether blocks may run as one function: not if switched off, nor while another tool records the operations."""
    return (
        os.environ.get(SWITCH) != 'eager'
        and device.type in ('cpu', 'cuda')
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
        and not is_in_torch_dispatch_mode()
    )


class ResidualBranch(torch.autograd.Function):
    """``x + branch(x)`` for the samples in ``kept``, ``x`` for the others; see the top of this file."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        kept: Tensor | None,
        scale: float,
        lean: bool,
        eps: float,
        padding: int,
        dilation: int,
        dtype: torch.dtype,
        *params: Tensor | None,
    ) -> Tensor:
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
            ctx.save_for_backward(None, kept, None, *params)
            return x.to(_sum_dtype(x, params), copy=True)
        conv_w, conv_b, norm_w, norm_b, w1, b1, w2, b2, gamma = params
        total = x.to(_sum_dtype(x, params))
        chosen = total if kept is None else total[kept]
        inside = (x if kept is None else chosen).to(dtype).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):
            u = _depthwise(inside, conv_w.to(dtype), conv_b.to(dtype), padding, dilation)
            norm_w, norm_b, w1, b1 = (param.to(dtype) for param in (norm_w, norm_b, w1, b1))
            hidden = None if lean else []
            out = _mlp(chosen, u, (norm_w, norm_b, w1, b1, *fold(w2, b2, gamma, scale, dtype)), eps, hidden)
        ctx.save_for_backward(inside, kept, u, *params, *hidden or ())
        return out if kept is None else total.index_copy(0, kept, out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        scale, lean, eps, padding, dilation, dtype, x_dtype = ctx.options
        inside, kept, u, *params = ctx.saved_tensors
        params, hidden = params[:9], params[9:]
        conv_w, conv_b, norm_w, norm_b, w1, b1, w2, b2, gamma = params
        if inside is None:  # DDP waits for a gradient of every parameter
            return (grad_out.to(x_dtype), *[None] * 7, *(None if p is None else torch.zeros_like(p) for p in params))
        grad = (grad_out if kept is None else grad_out[kept]).to(dtype)
        grad = grad.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        with torch.autocast(grad.device.type, enabled=False):
            normed, mean, rstd = torch.native_layer_norm(u, norm_w.shape, norm_w.to(dtype), norm_b.to(dtype), eps)
            folded_w, _ = fold(w2, b2, gamma, scale, dtype)
            tokens, normed_tokens = grad.flatten(0, 2), normed.flatten(0, 2)
            weight, bias = w1.to(dtype), b1.to(dtype)
            # Sums over the tokens in more than a half type.
            wide = torch.float32 if dtype.itemsize < 4 else dtype
            sums, grad_normed = None, []
            for number, part in enumerate(_chunks(len(tokens), tokens, CHUNK_TO_KEEP)):
                some = normed_tokens[part]
                before = linear(some, weight, bias) if lean else hidden[number]
                grad_hidden = torch.ops.aten.gelu_backward(linear(tokens[part], folded_w.t()), before)
                now = (
                    linear_weight_grad(F.gelu(before), tokens[part]),
                    linear_weight_grad(some, grad_hidden),
                    grad_hidden.sum(0, dtype=wide),
                )
                sums = [a.to(wide) for a in now] if sums is None else [a.add_(b) for a, b in zip(sums, now)]
                grad_normed.append(linear(grad_hidden, weight.t()))
            grad_folded, grad_w1, grad_b1 = (a.to(w2.dtype) for a in sums)
            grad_folded_b = tokens.sum(0, dtype=wide).to(b2.dtype)
            grad_normed = (grad_normed[0] if len(grad_normed) == 1 else torch.cat(grad_normed)).view_as(u)
            grad_u, grad_norm_w, grad_norm_b = torch.ops.aten.native_layer_norm_backward(
                grad_normed, u, norm_w.shape, mean, rstd, norm_w.to(dtype), norm_b.to(dtype), [True, True, True]
            )
            grad_u = grad_u.permute(0, 3, 1, 2)
            grad_inside, _, _ = torch.ops.aten.convolution_backward(
                grad_u,
                inside,
                conv_w.to(dtype),
                None,
                [1, 1],
                [padding] * 2,
                [dilation] * 2,
                False,
                [0, 0],
                inside.shape[1],
                [True, False, False],
            )
            grad_conv_w, grad_conv_b = depthwise_weight_grad(inside, grad_u, conv_w, padding, dilation)
        grad_x = grad_out + grad_inside if kept is None else grad_out.index_add(0, kept, grad_inside.to(grad_out.dtype))
        grad_gamma, factor, column = None, scale, scale
        if gamma is not None:  # never divides by gamma, which may be 0
            grad_gamma = (scale * (torch.linalg.vecdot(w2, grad_folded) + b2 * grad_folded_b)).to(gamma.dtype)
            factor = scale * gamma
            column = factor[:, None]
        grads = (
            grad_conv_w,
            grad_conv_b,
            grad_norm_w,
            grad_norm_b,
            grad_w1,
            grad_b1,
            grad_folded.mul_(column),
            grad_folded_b * factor,
        )
        return (grad_x.to(x_dtype), *[None] * 7, *(g.to(p.dtype) for g, p in zip(grads, params)), grad_gamma)


def _sum_dtype(x: Tensor, params: Sequence[Tensor | None]) -> torch.dtype:
    """As in the eager path under autocast: parameters of fp32 lift the residual stream to fp32."""
    return torch.promote_types(x.dtype, params[0].dtype)


def _mlp(x: Tensor, u: Tensor, params: Sequence[Tensor], eps: float, hidden: list[Tensor] | None) -> Tensor:
    """``x`` plus LayerNorm, first Linear, GELU and second Linear of ``u``.

    Args:
        x: (N, C, H, W) in channels_last memory; its type is that of the sum.
        u: (N, H, W, C).
        params: Of LayerNorm, first and second Linear, weight and bias each, in the type of ``u``.
        hidden: Where to keep the outputs of the first Linear, part by part.
    """
    norm_w, norm_b, w1, b1, w2, b2 = params
    rows, inputs = x.permute(0, 2, 3, 1).flatten(0, 2), u.flatten(0, 2)
    out = torch.empty_like(rows)
    for part in _chunks(len(rows), inputs, CHUNK if hidden is None else CHUNK_TO_KEEP):
        normed = F.layer_norm(inputs[part], norm_w.shape, norm_w, norm_b, eps)
        if hidden is None:
            active = linear(normed, w1, b1, gelu=True)
        else:
            hidden.append(linear(normed, w1, b1))
            active = F.gelu(hidden[-1])
        torch.add(rows[part], linear(active, w2, b2), out=out[part])
    return out.view(u.shape).permute(0, 3, 1, 2)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, padding: int, dilation: int) -> Tensor:
    """(N, C, H, W) in channels_last memory -> (N, H, W, C)."""
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1]).permute(0, 2, 3, 1)


def fold(weight: Tensor, bias: Tensor, gamma: Tensor | None, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight (O, I) and bias (O,) of a Linear with ``scale * gamma`` times its output."""
    if gamma is None:
        return (weight * scale).to(dtype), (bias * scale).to(dtype)
    return (weight * (scale * gamma)[:, None]).to(dtype), (bias * (scale * gamma)).to(dtype)


@torch.no_grad()
def infer(x: Tensor, params: Sequence[Tensor], eps: float, padding: int, dilation: int, dtype: torch.dtype) -> Tensor:
    """``x + branch(x)`` in ``dtype``, with parameters that are cast and folded already; (N, C, H, W), channels_last."""
    conv_w, conv_b, *others = params
    with torch.autocast(x.device.type, enabled=False):
        u = _depthwise(x.to(conv_w.dtype), conv_w, conv_b, padding, dilation)
        return _mlp(x.to(dtype), u, others, eps, None)
