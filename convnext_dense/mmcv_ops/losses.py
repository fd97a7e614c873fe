"""Focal losses with their gradients. Source: https://arxiv.org/abs/1708.02002.

Logarithms come from ``logsigmoid`` and stay finite for any logit. mmcv clamps the probability instead, so its loss
jumps to 87 where a probability of fp32 rounds to 0 or 1; the gradients agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_dense.mmcv_ops.numerics import operator, wide


@operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each logit into ``output``.

    Args:
        input: (n, c), logits.
        target: (n,), classes; any other number means background.
        weight: (c,), one for each class of the target, or empty.
        output: (n, c).
        gamma: Exponent of the focal factor.
        alpha: Weight of the positive terms; negative ones have one minus alpha.
    """
    logits = wide(input)
    p = logits.sigmoid()
    positive = -alpha * (1 - p) ** gamma * F.logsigmoid(logits)
    negative = -(1 - alpha) * p**gamma * F.logsigmoid(-logits)
    loss = torch.where(one_hot(target, logits), positive, negative)
    output.copy_(loss * rows_weight(weight, target, logits)[:, None])


@operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss with respect to its logit into ``grad_input``; arguments as above."""
    logits = wide(input)
    p = logits.sigmoid()
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * F.logsigmoid(logits))
    negative = -(1 - alpha) * p**gamma * (gamma * (1 - p) * F.logsigmoid(-logits) - p)
    grad = torch.where(one_hot(target, logits), positive, negative)
    grad_input.copy_(grad * rows_weight(weight, target, logits)[:, None])


@operator
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each row into ``output``.

    Args:
        input: (n, c), probabilities.
        target: (n,), classes; a negative number gives a loss of 0.
        weight: (c,), or empty.
        output: (n,).
        gamma: Exponent of the focal factor.
        alpha: Factor of the loss.
    """
    p = target_probability(wide(input), target)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=torch.finfo(torch.float32).tiny).log()
    output.copy_(torch.where(target >= 0, loss * rows_weight(weight, target, p), 0))


@operator
def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivatives of the losses with respect to the logits of the softmax into ``grad_input``, (n, c).

    ``buff``, (n,), takes the derivative by the logarithm of the probability. The other arguments are as above.
    """
    softmax = wide(input)
    p = target_probability(softmax, target)
    log_p = p.clamp(min=torch.finfo(torch.float32).tiny).log()
    slope = alpha * (gamma * (1 - p) ** (gamma - 1) * p * log_p - (1 - p) ** gamma)
    slope = torch.where(target >= 0, slope * rows_weight(weight, target, p), 0)
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (one_hot(target, softmax).to(softmax.dtype) - softmax))


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    """(n, c) of bool: the class of each row, none for numbers that are no class."""
    return target[:, None] == torch.arange(like.shape[1], device=target.device)


def target_probability(softmax: Tensor, target: Tensor) -> Tensor:
    """(n,): the probability of the class of each row, 1 where there is none."""
    p = softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return torch.where(target >= 0, p, 1)


def rows_weight(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """(n,): the weight of the class of each row, 1 for background, for which mmcv reads past the end."""
    if weight.numel() == 0:
        return like.new_ones(len(target))
    is_class = (target >= 0) & (target < len(weight))
    return torch.where(is_class, weight.to(like.dtype)[target.clamp(0, len(weight) - 1)], 1)
