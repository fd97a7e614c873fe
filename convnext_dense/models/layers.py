"""Layers that a ConvNeXt block and the downsampling between stages are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW-shaped tensor; free of copies where its memory is channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x.permute(0, 2, 3, 1))  # (N, C, H, W) -> (N, H, W, C); statistics are fp32 in half too
        return x.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class GRN(nn.Module):
    """Global response normalisation of a (N, H, W, C) tensor (ConvNeXt V2, section 3.2, equations 1 to 3)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # The sum of squares over a whole image overflows in half precision.
        energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
        response = energy / (energy.mean(dim=-1, keepdim=True) + self.eps)
        return torch.addcmul(self.beta, x, self.gamma * response.to(x.dtype)) + x


class DropPath(nn.Module):
    """Stochastic depth: in training, drops whole samples of a residual branch and scales up the kept ones."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, samples: int) -> Tensor | None:
        """Which samples to keep, as 1 and 0 on the CPU, or None for all."""
        if not self.training or self.rate == 0:
            return None
        return torch.empty(samples).bernoulli_(1 - self.rate)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.draw(x.shape[0])
        return x if mask is None else x * (mask.to(x) / (1 - self.rate)).view(-1, *(1,) * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class DilatedDownsample(nn.Conv2d):
    """The 2x2 convolution between two stages at stride 1: every other position has what stride 2 gives."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(in_channels, out_channels, 2, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.dilation[1], 0, self.dilation[0])))  # right and bottom: (H, W) stays
