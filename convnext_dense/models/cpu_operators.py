"""Matrix products and depthwise gradients by the fastest library call on this CPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# oneDNN's fast depthwise kernels take widths up to 3.
SLICE = 3
# Bytes of the hidden layer to compute at once on CPUs: in parts that are kept for the backward pass, and in others.
CHUNK_TO_KEEP = 8 * 2**20
CHUNK = 4 * 2**20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Apply a Linear by the fastest library call, and GELU after it if asked for.

    Args:
        x: (..., I).
        weight: (O, I), or what :func:`pack` returned for it.
        bias: (O,).
        gelu: Apply the exact GELU to the result.

    Returns:
        (..., O).
    """
    if weight.is_mkldnn or _onednn_is_faster('linear', x.device.type, x.dtype, torch.get_num_threads()):
        return _onednn_linear(x, weight, bias, 'gelu' if gelu else 'none')
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear_weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient (O, I) of a Linear's weight, from its input (T, I) and its output's gradient (T, O)."""
    if _onednn_is_faster('weight gradient', x.device.type, x.dtype, torch.get_num_threads()):
        # oneDNN copies its first factor to transpose it; autograd copies a transposed result. Take the smaller copy.
        if x.numel() + x.shape[1] * grad.shape[1] < grad.numel():
            return _onednn_linear(x.t(), grad.t(), None).t()
        return _onednn_linear(grad.t(), x.t(), None)
    return grad.t() @ x


def pack(weight: Tensor) -> Tensor:
    """Reorder the weight (O, I) of a :func:`linear` that is called often as oneDNN wants it, where oneDNN is used."""
    if _onednn_is_faster('linear', weight.device.type, weight.dtype, torch.get_num_threads()):
        tokens = CHUNK // (max(weight.shape) * weight.dtype.itemsize)
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), tokens)
    return weight


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = 'none') -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], 'none')


@functools.cache
def _onednn_is_faster(operation: str, device: str, dtype: torch.dtype, threads: int) -> bool:
    """Measure, once per process and setting, whether oneDNN beats PyTorch's default BLAS on this processor.

    It takes about 100 ms. BLAS libraries differ by a factor of two between processors.
    """
    if (
        device != 'cpu'
        or dtype not in (torch.float32, torch.bfloat16)
        or not hasattr(torch.ops.mkldnn, '_linear_pointwise')
        or not torch.backends.mkldnn.is_available()
        or not torch.backends.mkldnn.enabled
    ):
        return False
    x, grad = torch.ones(1024, 384, dtype=dtype), torch.ones(1024, 1536, dtype=dtype)
    weight, bias = torch.ones(1536, 384, dtype=dtype), torch.ones(1536, dtype=dtype)
    ways = {
        'linear': (lambda: F.gelu(F.linear(x, weight, bias)), lambda: _onednn_linear(x, weight, bias, 'gelu')),
        'weight gradient': (lambda: grad.t() @ x, lambda: _onednn_linear(x.t(), grad.t(), None).t()),
    }[operation]

    def seconds(function: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    with torch.no_grad(), torch.autocast('cpu', enabled=False):
        try:
            _, *rounds = [[seconds(way) for way in ways] for _ in range(11)]
        except RuntimeError:  # no such kernel for this processor
            return False
    stock, onednn = map(min, zip(*rounds))
    return onednn < stock


def token_parts(tokens: int, like: Tensor, keep: bool) -> list[slice]:
    """Split a number of tokens into the parts to take through the hidden layer of a block at once.

    On CPUs a part of the hidden layer fits the cache, where memory is slow, and is small enough for malloc to return
    the same memory again: fresh memory costs a page fault per 4 KiB. On other devices there is one part.

    Args:
        tokens: Number of tokens.
        like: (tokens, C), of the type to compute in; the hidden layer has 4 * C channels.
        keep: Whether the parts are kept for the backward pass, where each part costs one sum of weight gradients.
    """
    if like.device.type != 'cpu':
        return [slice(0, tokens)]
    size = CHUNK_TO_KEEP if keep else CHUNK
    step = max(size // (4 * like.shape[-1] * like.dtype.itemsize), 1)
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def depthwise_weight_grad(
    x: Tensor, grad: Tensor, weight: Tensor, padding: int, dilation: int
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
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(grad, x, weight, *options, [False, True, True])
        return grad_weight, grad_bias
    padded = F.pad(x, (padding, padding, padding, padding))
    parts, grad_bias = [], None
    for left in range(0, side, SLICE):
        columns = weight[..., left : left + SLICE]
        part = padded[..., left : left + width + columns.shape[-1] - 1].contiguous(memory_format=torch.channels_last)
        _, grad_columns, bias = torch.ops.aten.convolution_backward(
            grad, part, columns.contiguous(), *options, [False, True, left == 0]
        )
        parts.append(grad_columns)
        grad_bias = bias if left == 0 else grad_bias
    return torch.cat(parts, dim=-1), grad_bias
