"""What a swapped pipeline may need beside the backbone: a last stage for regions, and features of other strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, nn

from convnext_dense.archs import NUM_STAGES
from convnext_dense.errors import UserError
from convnext_dense.models.argument_names import checked_names
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.models.staged import LayeredModule


class ConvNeXtSharedHead(LayeredModule):
    """The last stage of a ConvNeXt as ``shared_head`` of a C4 detector, as its ResNets use theirs.

    The backbone in front outputs the stage before, ``out_indices=(2,)``.

    Args:
        arch, drop_path_rate, layer_scale_init_value, use_grn: As of the :class:`ConvNeXt` in front.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` takes the last stage out of the weights of a whole
            ConvNeXt, from every source that the backbone takes.

    Raises:
        UserError: An argument cannot be used, or weights do not fit.
    """

    @checked_names()
    def __init__(
        self,
        arch: str | dict = 'tiny',
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        use_grn: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.options: dict[str, Any] = dict(
            arch=arch,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
            use_grn=use_grn,
            out_indices=(NUM_STAGES - 1,),
        )
        self._take(ConvNeXt(**self.options))

    def _take(self, whole: ConvNeXt) -> None:
        self.num_layers = whole.num_layers
        self.downsample, self.blocks, self.norm = whole.downsample_layers[-1], whole.stages[-1], whole.norm3

    def layer_id(self, name: str, decay_type: str) -> int:
        """Layer of a parameter for layer decay: that of the same parameter in the whole ConvNeXt."""
        part = name.split('.')[0]
        if part == 'norm':
            return self.num_layers + 1
        if decay_type == 'stage_wise':
            return 0 if part == 'downsample' else NUM_STAGES
        return self.num_layers

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names; the official initialisation was done at construction.

        Raises:
            UserError: The file cannot be had or does not fit.
        """
        if self.init_cfg is not None and self.init_cfg['type'] in ('Pretrained', PretrainedInit) and not self.is_init:
            whole = ConvNeXt(**self.options, init_cfg=self.init_cfg)
            whole.init_weights()
            self._take(whole.to(self.norm.weight.device))
            self._is_init = True

    def forward(self, x: Tensor) -> Tensor:
        """Regions (N, channels of stage 2, H, W) -> (N, channels of stage 3, H / 2, W / 2), contiguous."""
        return self.norm(self.blocks(self.downsample(x))).contiguous()


class PyramidAdapter(BaseModule):
    """Features of any strides and channels from the four of a ConvNeXt, for heads that were made for other backbones.

    A top-down pathway as in FPN (arXiv 1612.03144, section 3) down to the finest stage that is needed, then for each
    output a 3x3 convolution, behind bilinear upsampling where the output is finer than the finest stage.

    Args:
        in_channels: Of the stages, from fine to coarse.
        in_strides: Of the stages, each twice the one before.
        out_channels: Of the outputs.
        strides: Of the outputs, in any order, with repetitions; none coarser than the last stage.

    Raises:
        UserError: There are no such features to be made.
    """

    @checked_names()
    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        strides: Sequence[int],
        in_strides: Sequence[int] = (4, 8, 16, 32),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if len(in_channels) != len(in_strides) or len(out_channels) != len(strides):
            raise UserError(
                f'PyramidAdapter needs as many in_channels as in_strides and as many out_channels as '
                f'strides, found {len(in_channels)}, {len(in_strides)}, {len(out_channels)}, '
                f'{len(strides)}'
            )
        # The stage of each output, and how much finer it is.
        self.sources = []
        for stride in strides:
            stage = in_strides.index(stride) if stride in in_strides else 0
            factor = in_strides[stage] / stride
            if factor < 1 or factor != int(factor):
                raise UserError(f'PyramidAdapter cannot make stride {stride} from {tuple(in_strides)}')
            self.sources.append((stage, int(factor)))
        self.finest = min(stage for stage, _ in self.sources)
        width = max(out_channels)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels[self.finest :])
        self.outputs = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1) for channels in out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One (N, channels, H, W) a stage, from fine to coarse -> one a stride of ``strides``."""
        merged = {}
        above = None
        for stage in range(len(x) - 1, self.finest - 1, -1):
            level = self.laterals[stage - self.finest](x[stage])
            if above is not None:
                level = level + F.interpolate(above, size=level.shape[-2:], mode='nearest')
            merged[stage] = above = level
        outputs = []
        for (stage, factor), conv in zip(self.sources, self.outputs):
            level = merged[stage]
            if factor > 1:
                level = F.interpolate(level, scale_factor=factor, mode='bilinear', align_corners=False)
            outputs.append(conv(level))
        return tuple(outputs)


class FeatureBatchNorm(BaseModule):
    """BatchNorm of a single feature map, as a neck: linear evaluations of frozen backbones have it before the head.

    Args:
        in_channels: Channels of the map.
        init_cfg: mmengine's initialisation config.
    """

    @checked_names()
    def __init__(self, in_channels: int, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.norm = nn.BatchNorm2d(in_channels)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        """Normalise.

        Args:
            features: One tensor (N, in_channels, H, W).

        Returns:
            One tensor of the same shape.
        """
        (feature,) = features
        return (self.norm(feature),)
