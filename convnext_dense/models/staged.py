"""What backbones share: the layer of each parameter for layer decay, and the way of an image through four stages."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from convnext_dense.archs import resolve_out_indices
from convnext_dense.errors import UserError
from convnext_dense.models.fusion_rule import is_transformed


class LayeredModule(BaseModule):
    """A module that gives each of its parameters a layer: layer decay finds it by this class.

    Attributes:
        num_layers: Layers that layer decay tells apart.
    """

    num_layers: int

    @abstractmethod
    def layer_id(self, name: str, decay_type: str) -> int:
        """Return the layer of a parameter for layer-wise learning-rate decay.

        Args:
            name: Name of a parameter of this module, such as ``stages.2.4.pwconv1.weight``.
            decay_type: ``'layer_wise'`` or ``'stage_wise'``.

        Returns:
            0 (nearest to the image) to ``num_layers + 1`` (full learning rate).

        Raises:
            UserError: The rule does not know the name, or the module has no layers of that type.
        """


class StagedBackbone(LayeredModule):
    """Features of up to four stages, each with a norm of its own.

    A subclass builds ``downsample_layers`` (the stem, then what is before stages 1 to 3), ``stages`` and, for each
    stage in ``out_indices``, ``norm0`` to ``norm3``, and calls :meth:`freeze_stages` at the end of its construction.

    Args:
        depths: Blocks of each stage.
        out_indices: The stages to output, see :func:`convnext_dense.archs.resolve_out_indices`.
        drop_path_rate: Stochastic depth of the last block.
        frozen_stages: Number of stages to freeze, each with the downsampling before it; -1 is 0.
        strides: Of the features of each stage, in pixels.
        init_cfg: mmengine's initialisation config.

    Raises:
        UserError: An argument cannot be used.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        out_indices: int | Sequence[int],
        drop_path_rate: float,
        frozen_stages: int,
        strides: tuple[int, ...],
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(init_cfg)
        self.depths = depths
        self.out_indices = resolve_out_indices(out_indices)
        self.num_built = self.out_indices[-1] + 1
        self.strides = strides
        # Below this side, the last stage that is built would be empty.
        self.min_size = strides[self.num_built - 1]
        check_drop_path_rate(self, drop_path_rate)
        if not -1 <= frozen_stages <= self.num_built:
            raise UserError(
                f'{type(self).__name__} cannot freeze frozen_stages={frozen_stages}: with out_indices='
                f'{self.out_indices} it has {self.num_built} stages, use -1 to {self.num_built}'
            )
        self.frozen_stages = frozen_stages
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()

    @property
    def num_layers(self) -> int:  # type: ignore[override]
        """Layers that layer decay tells apart (official rule): 6 for tiny, 12 for small to xlarge."""
        return 3 + math.ceil(self.depths[2] / 3)

    def layer_id(self, name: str, decay_type: str) -> int:
        """Return the layer of a parameter by the rule of the official detection and segmentation code.

        Args:
            name: Name of a parameter of this module, such as ``stages.2.4.pwconv1.weight``.
            decay_type: ``'layer_wise'`` or ``'stage_wise'``.

        Returns:
            0 (stem) to ``num_layers + 1`` (full learning rate: the output norms, which are new).

        Raises:
            UserError: The rule does not know the name.
        """
        part, *rest = name.split('.')
        if part == 'downsample_layers':
            stage = int(rest[0])
            if decay_type == 'stage_wise':
                return 0
            return (0, 2, 3, self.num_layers)[stage]
        if part == 'stages':
            stage, block = int(rest[0]), int(rest[1])
            if decay_type == 'stage_wise':
                return stage + 1
            return (1, 2, 3 + block // 3, self.num_layers)[stage]
        if part in {f'norm{i}' for i in self.out_indices}:
            return self.num_layers + 1
        raise UserError(
            f'layer decay does not know the ConvNeXt parameter {name!r}: modules added to ConvNeXt need a '
            'layer id of their own, override ConvNeXt.layer_id'
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the stages in ``out_indices``.

        Args:
            x: (N, in_channels, H, W); H and W at least 32 where all four stages are built, odd sizes too.

        Returns:
            One contiguous tensor per stage. Stage i has ``channels[i]`` and, rounded, 1 / strides[i] of the size.

        Raises:
            UserError: The image is too small for the last stage.
        """
        # torch.fx passes a proxy, whose size is known only when the graph runs.
        if isinstance(x, Tensor) and min(x.shape[-2:]) < self.min_size:
            raise image_too_small(self, x, self.min_size)
        if not is_transformed():
            x = x.contiguous(memory_format=torch.channels_last)
        outputs = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x))
            if i in self.out_indices:
                # mmcv's RoIAlign assumes contiguous NCHW and silently returns wrong values for any other layout.
                outputs.append(getattr(self, f'norm{i}')(x).contiguous())
        return tuple(outputs)

    def freeze_stages(self) -> None:
        """Freeze the first ``frozen_stages`` stages; before any wrapper (DDP) counts the parameters to train."""
        for i in range(self.frozen_stages):
            for module in (self.downsample_layers[i], self.stages[i]):
                module.eval()  # no stochastic depth in frozen stages
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> StagedBackbone:
        super().train(mode)
        self.freeze_stages()
        return self


def linear_rates(last: float, count: int) -> list[float]:
    """Return ``count`` rates of stochastic depth from 0 to ``last``; as torch.linspace, without a tensor."""
    if count == 1:
        return [0.0]
    return [last * i / (count - 1) for i in range(count)]


def check_drop_path_rate(module: nn.Module, rate: float) -> None:
    """Raise a UserError where ``rate`` is no rate of stochastic depth."""
    if not 0 <= rate < 1:
        raise UserError(f'{type(module).__name__} needs 0 <= drop_path_rate < 1, found {rate}')


def image_too_small(module: nn.Module, x: Tensor, least: int) -> UserError:
    """The error for an image (N, C, H, W) with a side below ``least``."""
    return UserError(
        f'{type(module).__name__} got an image of {x.shape[-2]}x{x.shape[-1]}, it needs at least {least}x{least}: '
        'enlarge the image in the pipeline (Resize) or pad it (pad_size_divisor of the data_preprocessor)'
    )
