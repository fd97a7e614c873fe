"""Layers that a ConvNeXt block and the downsampling between stages are made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_dense.errors import UserError


class OverChannels(nn.Module):
    """Apply a norm of the last dimension to an NCHW-shaped tensor; free of copies where its memory is channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x.permute(0, 2, 3, 1))  # (N, C, H, W) -> (N, H, W, C); statistics are fp32 in half too
        return x.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class LayerNorm2d(OverChannels, nn.LayerNorm):
    """LayerNorm over the channels of an NCHW-shaped tensor."""


class ScaleNorm(nn.Module):
    """Divide by a root of the last dimension, without centring and without a bias.

    Args:
        channels: Size of the last dimension.
        eps: Added under the root.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    @abstractmethod
    def power(self, x: Tensor) -> Tensor:
        """Return what is under the root, (..., C) -> (..., 1)."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(self.power(wide) + self.eps)).to(x.dtype) * self.weight


class RMSNorm(ScaleNorm):
    """Divide by the root mean square (arXiv 1910.07467); torch's own needs torch 2.4."""

    def power(self, x: Tensor) -> Tensor:
        return x.square().mean(-1, keepdim=True)


class SimpleNorm(ScaleNorm):
    """timm's SimpleNorm: divide by the standard deviation, with Bessel's correction, and keep the mean."""

    def power(self, x: Tensor) -> Tensor:
        return x.var(-1, keepdim=True)


class RMSNorm2d(OverChannels, RMSNorm):
    """RMSNorm over the channels of an NCHW-shaped tensor."""


class SimpleNorm2d(OverChannels, SimpleNorm):
    """SimpleNorm over the channels of an NCHW-shaped tensor."""


# By the type in norm_cfg: over the last dimension, and over the channels of NCHW.
NORMS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    'LN2d': (nn.LayerNorm, LayerNorm2d),
    'LN': (nn.LayerNorm, LayerNorm2d),
    'RMSNorm': (RMSNorm, RMSNorm2d),
    'SimpleNorm': (SimpleNorm, SimpleNorm2d),
}


def resolve_norm(norm_cfg: dict | None) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """Return the norm over the last dimension and the one over the channels of NCHW, each called with the channels.

    Args:
        norm_cfg: ``dict(type=..., eps=...)`` with a type in :data:`NORMS`; None is LayerNorm. Without eps it is 1e-6.

    Raises:
        UserError: There is no such norm.
    """
    cfg = dict(norm_cfg or dict(type='LN2d'))
    eps = cfg.pop('eps', 1e-6)
    kind = cfg.pop('type', None)
    if kind not in NORMS or cfg:
        raise UserError(
            f'ConvNeXt has no norm_cfg={norm_cfg}: use one of {", ".join(NORMS)} as type, as in '
            "dict(type='LN2d', eps=1e-6), or leave it out"
        )
    last, over_channels = NORMS[kind]
    return partial(last, eps=eps), partial(over_channels, eps=eps)


def comparable(cfg: dict) -> dict:
    """Return a config of a norm or an activation with its defaults, so that equal ones compare equal."""
    if 'LN' in cfg['type'] or 'Norm' in cfg['type']:
        return dict(type=cfg['type'].replace('2d', ''), eps=cfg.get('eps', 1e-6))
    return dict(type=cfg['type'], approximate=cfg.get('approximate', 'none'))


def resolve_activation(act_cfg: dict | None) -> Callable[[], nn.Module]:
    """Return what makes the activation.

    Args:
        act_cfg: ``dict(type='GELU')``, the same with ``approximate='tanh'``, or ``dict(type='SiLU')``; None is GELU.

    Raises:
        UserError: There is no such activation.
    """
    cfg = dict(act_cfg or dict(type='GELU'))
    if cfg == dict(type='SiLU'):
        return nn.SiLU
    approximate = cfg.pop('approximate', 'none')
    if cfg == dict(type='GELU') and approximate in ('none', 'tanh'):
        return partial(nn.GELU, approximate=approximate)
    raise UserError(
        f"ConvNeXt has no act_cfg={act_cfg}: use dict(type='GELU'), dict(type='GELU', approximate='tanh') or "
        "dict(type='SiLU'), or leave it out"
    )


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

    def __init__(self, in_channels: int, out_channels: int, dilation: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 2, dilation=dilation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.dilation[1], 0, self.dilation[0])))  # right and bottom: (H, W) stays


STEMS = ('patch', 'overlap', 'overlap_tiered', 'overlap_act')


def build_stem(
    kind: str,
    in_channels: int,
    channels: int,
    patch_size: int,
    norm2d: Callable[[int], nn.Module],
    act: Callable[[], nn.Module],
    bias: bool,
) -> nn.Sequential:
    """Build the stem: the official patch embedding, or timm's two overlapping convolutions, with a norm behind it.

    Args:
        kind: One of :data:`STEMS`.
        in_channels, channels: Of the image, and of the first stage.
        patch_size: Kernel and stride of the patch embedding.
        norm2d, act: Make the norm over channels, and the activation of ``'overlap_act'``.
        bias: Build the biases of the convolutions.
    """
    if kind == 'patch':
        return nn.Sequential(nn.Conv2d(in_channels, channels, patch_size, patch_size, bias=bias), norm2d(channels))
    between = tiered_channels(channels) if kind == 'overlap_tiered' else channels
    first = nn.Conv2d(in_channels, between, 3, 2, padding=1, bias=bias)
    second = nn.Conv2d(between, channels, 3, 2, padding=1, bias=bias)
    if kind == 'overlap_act':
        return nn.Sequential(first, act(), second, norm2d(channels))
    return nn.Sequential(first, second, norm2d(channels))


def tiered_channels(channels: int) -> int:
    """Return half of ``channels``, rounded to a multiple of 8 as timm's ``make_divisible`` does."""
    half = channels // 2
    rounded = max(8, (half + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * half else rounded


def build_downsample(
    before: int, channels: int, dilation: int, norm2d: Callable[[int], nn.Module], bias: bool
) -> nn.Sequential:
    """Build the norm and the 2x2 convolution before a stage; ``dilation`` is that of the stage's blocks."""
    if dilation == 1:
        conv = nn.Conv2d(before, channels, 2, 2, bias=bias)
    else:
        conv = DilatedDownsample(before, channels, dilation // 2, bias)
    return nn.Sequential(norm2d(before), conv)
