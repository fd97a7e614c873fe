"""The steps of mmcv's synchronized batch normalization; mmcv reduces over the processes in between.

``input`` and the like are (n, c, s) with s positions; statistics are (c,) in fp32.
"""

from __future__ import annotations

from torch import Tensor

from convnext_dense.mmcv_ops.numerics import operator, wide


@operator
def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of each channel into ``mean``."""
    mean.copy_(wide(input).mean((0, 2)))


@operator
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean square distance from ``mean`` into ``var``."""
    var.copy_((wide(input) - mean[:, None]).square().mean((0, 2)))


@operator
def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalize, and move the running statistics.

    Args:
        input: (n, c, s).
        mean: (c,), of all processes.
        var: (c,), of all processes, divided by the number of values.
        weight: (c,) or None.
        bias: (c,) or None.
        running_mean: (c,) or None, changed here.
        running_var: (c,) or None, changed here: takes the unbiased variance.
        norm: (n, c, s), written here: the values without weight and bias.
        std: (c,), written here.
        output: (n, c, s), written here.
        eps: Added to the variance.
        momentum: Weight of the new statistics in the running ones.
        group_size: Number of processes.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((wide(input) - mean[:, None]) / std[:, None])
    if weight is None or bias is None:
        output.copy_(norm)
    else:
        output.copy_(norm * weight[:, None] + bias[:, None])
    if running_mean is None or running_var is None:
        return
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
    running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


@operator
def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients of weight and bias, (c,)."""
    grad = wide(grad_output)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


@operator
def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input, (n, c, s). ``grad_weight`` and ``grad_bias`` are means over the processes."""
    count = norm.shape[0] * norm.shape[2]
    shared = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((wide(grad_output) - shared) * (weight / std)[:, None])
