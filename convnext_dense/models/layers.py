"""Layers that a ConvNeXt block and the downsampling between stages are made of."""

from __future__ import annotations

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW-shaped tensor; free of copies where its memory is channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x.permute(0, 2, 3, 1))  # (N, C, H, W) -> (N, H, W, C); statistics are fp32 in half too
        return x.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class GRN(nn.Module):
    """Global response normalisation of a (N, H, W, C) tensor (ConvNeXt V2, section 3.2)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return global_response_norm(x, self.gamma, self.beta, self.eps)


def global_response_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Scale each channel of each image by its energy relative to the other channels (equations 1 to 3).

    Args:
        x: (N, H, W, C).
        gamma: (C,), weight of the normalised response.
        beta: (C,), bias.
        eps: Added to the mean energy of an image.

    Returns:
        (N, H, W, C).
    """
    # The sum of squares over a whole image overflows in half precision.
    energy_dtype = torch.promote_types(x.dtype, torch.float32)
    energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=energy_dtype)
    response = energy / (energy.mean(dim=-1, keepdim=True) + eps)
    return torch.addcmul(beta, x, gamma * response.to(x.dtype)) + x


class DropPath(nn.Module):
    """Stochastic depth: in training, drop whole samples of a residual branch and scale up the kept ones."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, samples: int) -> Tensor | None:
        """Draw which samples to keep, as 1 and 0 on the CPU; None keeps all."""
        if not self.training or self.rate == 0:
            return None
        return draw_kept_samples(samples, self.rate)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.draw(x.shape[0])
        return x if kept is None else scale_kept_samples(x, kept, self.rate)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


# torch.fx records these two as one call each: the number of samples is known only when the graph runs.
@torch.fx.wrap
def draw_kept_samples(samples: int, rate: float) -> Tensor:
    """Return (samples,) of 1 and 0 on the CPU: each sample is kept with probability ``1 - rate``."""
    return torch.empty(samples, device='cpu').bernoulli_(1 - rate)


@torch.fx.wrap
def scale_kept_samples(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Set the samples of ``x`` (N, ...) to zero where ``kept`` (N,) is 0, and scale up the others."""
    factors = kept.to(x) / (1 - rate)
    return x * factors.view(-1, *(1,) * (x.ndim - 1))


class DilatedDownsample(nn.Conv2d):
    """The 2x2 convolution between two stages at stride 1: every other position has what stride 2 gives."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(in_channels, out_channels, 2, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.dilation[1], 0, self.dilation[0])))  # right and bottom: (H, W) stays
