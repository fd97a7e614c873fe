"""Features of several strides from one map: the neck of ViTDet (arXiv 2203.16527, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from convnext_dense.errors import UserError
from convnext_dense.models.argument_names import checked_names
from convnext_dense.models.layers import LayerNorm2d

INPUT_STRIDE = 16
STRIDES = (4, 8, 16, 32, 64)
EPS = 1e-6


class SimpleFeaturePyramid(BaseModule):
    """The simple feature pyramid: every level is made from the same map of stride 16, and none from another level.

    Each level ends in a 1x1 and a 3x3 convolution without bias, each with a LayerNorm behind it and no activation.
    Stride 64, which detectors use for their largest anchors, takes every other position of stride 32.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of every level.
        strides: Of the levels, ascending, out of 4, 8, 16, 32 and 64.
        init_cfg: mmengine's initialisation config.

    Raises:
        UserError: An argument cannot be used.
    """

    @checked_names()
    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        strides: Sequence[int] = STRIDES,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.strides = tuple(strides)
        if not self.strides or [stride for stride in STRIDES if stride in self.strides] != list(self.strides):
            raise UserError(
                f'SimpleFeaturePyramid cannot make strides={self.strides}: give some of {STRIDES}, each once and in '
                'ascending order'
            )
        if 64 in self.strides and 32 not in self.strides:
            raise UserError('SimpleFeaturePyramid makes stride 64 from stride 32: add 32 to strides')
        if in_channels % 4:
            raise UserError(
                f'SimpleFeaturePyramid halves the channels twice, found in_channels={in_channels}: give a multiple of 4'
            )
        self.levels = nn.ModuleDict()
        for stride in self.strides:
            if stride < 64:
                resample, width = _resample(in_channels, stride)
                self.levels[f'stride{stride}'] = nn.Sequential(*resample, *_tail(width, out_channels))
        # Kernel 1: every other position of stride 32.
        self.coarsest = nn.MaxPool2d(1, 2) if 64 in self.strides else None

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            x: The one map of a backbone, (N, in_channels, H, W).

        Returns:
            One contiguous tensor per stride, (N, out_channels, 16 / stride * H, 16 / stride * W), rounded down where
            stride is above 16 (up for 64).

        Raises:
            UserError: There are several maps.
        """
        if len(x) != 1:
            raise UserError(f'SimpleFeaturePyramid takes one map of stride {INPUT_STRIDE}, found {len(x)} maps')
        outputs = [level(x[0]).contiguous() for level in self.levels.values()]
        if self.coarsest is not None:
            outputs.append(self.coarsest(outputs[-1]))
        return tuple(outputs)


def _resample(width: int, stride: int) -> tuple[list[nn.Module], int]:
    """The layers from stride 16 to ``stride``, and the channels behind them."""
    if stride == 4:
        up_twice = [
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            LayerNorm2d(width // 2, eps=EPS),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        ]
        return up_twice, width // 4
    if stride == 8:
        return [nn.ConvTranspose2d(width, width // 2, 2, 2)], width // 2
    if stride == 16:
        return [], width
    return [nn.MaxPool2d(2, 2)], width


def _tail(width: int, out_channels: int) -> list[nn.Module]:
    """The layers that every level ends in."""
    return [
        nn.Conv2d(width, out_channels, 1, bias=False),
        LayerNorm2d(out_channels, eps=EPS),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels, eps=EPS),
    ]
