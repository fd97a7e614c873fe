"""The roadmap from ResNet to ConvNeXt (arXiv 2201.03545, section 2): 17 steps as one table and one block.

Each step changes the network of the step before it. :data:`STEPS` says what it changes, :class:`Design` what can be
changed, and the code below shows where, in the order of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from convnext_dense.archs import NUM_STAGES
from convnext_dense.errors import UserError
from convnext_dense.models.argument_names import checked_names
from convnext_dense.models.layers import DropPath, LayerNorm2d
from convnext_dense.models.staged import StagedBackbone, linear_rates
from convnext_dense.weights.find import tensors_of
from convnext_dense.weights.sources import read


@dataclass(frozen=True)
class Design:
    """What the steps change, in the order of the paper; the values here are those of ResNet."""

    stage_ratio: bool = False  # the depths of the regime
    patchify_stem: bool = False  # a bare 4x4 convolution of stride 4
    depthwise: bool = False  # one group per channel in the spatial convolution
    increased_width: bool = False  # 96 (T) or 128 (B) channels in stage 0
    inverted: bool = False  # wide inside the block, narrow between blocks
    depthwise_first: bool = False  # the spatial convolution before both 1x1 convolutions
    kernel_size: int = 3  # of the spatial convolution
    activation: type[nn.Module] = nn.ReLU
    fewer_activations: bool = False  # one per block, between its 1x1 convolutions
    fewer_norms: bool = False  # one per block, behind its depthwise convolution
    layer_norm: bool = False  # LayerNorm instead of BatchNorm, and biases
    separate_downsampling: bool = False  # LayerNorm and a 2x2 convolution between stages: ConvNeXt


# The steps of Figure 2, each with what it changes. The two recipes of ResNet train the same network.
STEPS: dict[str, dict[str, Any]] = {
    'resnet': {},
    'resnet_enhanced': {},
    'stage_ratio': dict(stage_ratio=True),
    'patchify_stem': dict(patchify_stem=True),
    'depthwise_conv': dict(depthwise=True),
    'increase_width': dict(increased_width=True),
    'inverting_dimensions': dict(inverted=True),
    'move_up_depthwise_conv': dict(depthwise_first=True),
    'kernel_5': dict(kernel_size=5),
    'kernel_7': dict(kernel_size=7),
    'kernel_9': dict(kernel_size=9),
    'kernel_11': dict(kernel_size=11),
    'relu_to_gelu': dict(kernel_size=7, activation=nn.GELU),  # 7 saturates: the paper goes on with it
    'fewer_activations': dict(fewer_activations=True),
    'fewer_norms': dict(fewer_norms=True),
    'bn_to_ln': dict(layer_norm=True),
    'separate_downsampling': dict(separate_downsampling=True),
}


@dataclass(frozen=True)
class Regime:
    """Sizes of one of the two roadmaps: blocks of each stage, and channels of stage 0, before and after their steps."""

    resnet_depths: tuple[int, ...]
    convnext_depths: tuple[int, ...]
    resnet_width: int
    stage_ratio_width: int
    convnext_width: int


REGIMES = {
    'T': Regime((3, 4, 6, 3), (3, 3, 9, 3), 64, 64, 96),  # ResNet-50 to ConvNeXt-T
    'B': Regime((3, 24, 36, 3), (3, 3, 27, 3), 64, 84, 128),  # ResNet-200 to ConvNeXt-B
}
DOWNSAMPLING = 2  # from one stage to the next, in channels and in size
STRIDES = (4, 8, 16, 32)


def design_of(step: str) -> Design:
    """Return the design of a step: its own change and those of all steps before it.

    Raises:
        UserError: There is no such step.
    """
    if step not in STEPS:
        raise UserError(f'the roadmap has no step {step!r}: use one of {", ".join(STEPS)}')
    changes: dict[str, Any] = {}
    for name, change in STEPS.items():
        changes.update(change)
        if name == step:
            break
    return Design(**changes)


def sizes_of(design: Design, regime: str) -> tuple[tuple[int, ...], int]:
    """Return the blocks of each stage and the width of stage 0 in a regime, ``'T'`` or ``'B'``.

    Raises:
        UserError: There is no such regime.
    """
    if regime not in REGIMES:
        raise UserError(f'the roadmap has no regime {regime!r}: use one of {", ".join(map(repr, REGIMES))}')
    sizes = REGIMES[regime]
    if not design.stage_ratio:
        return sizes.resnet_depths, sizes.resnet_width
    if not design.increased_width:
        return sizes.convnext_depths, sizes.stage_ratio_width
    return sizes.convnext_depths, sizes.convnext_width


def norm_layer(channels: int, design: Design) -> nn.Module:
    """Build the norm of a design over the channels of (N, C, H, W)."""
    return LayerNorm2d(channels, eps=1e-6) if design.layer_norm else nn.BatchNorm2d(channels)


class RoadmapBlock(nn.Module):
    """The block of one step, from ResNet's bottleneck to ConvNeXt's block.

    Every block is three convolutions with a norm behind each, and an activation behind the first, the second and the
    sum. What a step has removed is an identity.

    Args:
        in_channels: C, channels of the input.
        width: w, the width of the stage.
        stride: Of the spatial convolution.
        design: The step.
        drop_path: Rate of stochastic depth.
    """

    def __init__(self, in_channels: int, width: int, stride: int, design: Design, drop_path: float) -> None:
        super().__init__()
        wide = 4 * width
        pointwise = partial(nn.Conv2d, kernel_size=1, bias=design.layer_norm)
        spatial = partial(
            nn.Conv2d,
            kernel_size=design.kernel_size,
            stride=stride,
            padding=design.kernel_size // 2,
            bias=design.layer_norm,
        )
        if not design.inverted:  # C -> w -> w -> 4w
            self.conv1 = pointwise(in_channels, width)
            self.conv2 = spatial(width, width, groups=width if design.depthwise else 1)
            self.conv3 = pointwise(width, wide)
        elif not design.depthwise_first:  # C -> 4w -> 4w -> w
            self.conv1 = pointwise(in_channels, wide)
            self.conv2 = spatial(wide, wide, groups=wide)
            self.conv3 = pointwise(wide, width)
        else:  # C -> C -> 4w -> w
            self.conv1 = spatial(in_channels, in_channels, groups=in_channels)
            self.conv2 = pointwise(in_channels, wide)
            self.conv3 = pointwise(wide, width)

        # Behind the depthwise convolution there is always a norm, between the 1x1 convolutions always an activation.
        self.norm1 = norm_layer(self.conv1.out_channels, design)
        self.norm2 = nn.Identity() if design.fewer_norms else norm_layer(self.conv2.out_channels, design)
        self.norm3 = nn.Identity() if design.fewer_norms else norm_layer(self.conv3.out_channels, design)
        self.act1 = nn.Identity() if design.fewer_activations else design.activation()
        self.act2 = design.activation()
        self.act_of_sum = nn.Identity() if design.fewer_activations else design.activation()

        out_channels = self.conv3.out_channels
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, norm_layer(out_channels, design))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, w or 4w, H / stride, W / stride)."""
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return self.act_of_sum(self.shortcut(x) + self.drop_path(y))


class ConvNeXtRoadmap(StagedBackbone):
    """The network of one step of the roadmap from ResNet to ConvNeXt, as a backbone.

    Each output has a LayerNorm of its own, as in :class:`convnext_dense.ConvNeXt`, so that steps differ in nothing but
    themselves. ``forward`` and the layer ids of layer decay are those of ConvNeXt too (:class:`.StagedBackbone`). The
    first step is ResNet-50 or ResNet-200, the last ConvNeXt-T or -B without layer scale.
    Norms and convolutions start as in torchvision's ResNets up to the step ``bn_to_ln``, and from there as in ConvNeXt.

    Args:
        step: A name in :data:`~convnext_dense.models.roadmap.STEPS`.
        regime: ``'T'`` (ResNet-50 to ConvNeXt-T) or ``'B'`` (ResNet-200 to ConvNeXt-B).
        width: Width of stage 0, doubled from stage to stage; None is that of the regime at this step.
        depths: Blocks of each stage; None are those of the regime at this step.
        in_channels: Channels of the input image.
        out_indices: The stages to output, ascending; negative ones count from the last stage. Stages behind the last
            output are not built, and only outputs have a norm (``norm0`` to ``norm3``).
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first block.
        frozen_stages: Freeze the first n stages, each with the downsampling before it, and the statistics of their
            BatchNorms (stage 1: the stem). 0 and -1 freeze nothing.
        norm_eval: Keep the statistics of every BatchNorm in training, as mmdet's ResNets do on ImageNet weights.
        init_cfg: mmengine's initialisation config. ``dict(type='Pretrained', checkpoint=...)`` takes weights of this
            step under our names, by path, URL or short name; official files exist for no step.

    Attributes:
        channels: Of the features of all four stages: 4 times the width before the step ``inverting_dimensions``.
        out_indices: The stages in the output, resolved to 0 to 3.
        strides: Of all four stages, in pixels.

    Raises:
        UserError: An argument cannot be used, or weights do not fit.
    """

    @checked_names()
    def __init__(
        self,
        step: str,
        regime: str = 'T',
        width: int | None = None,
        depths: Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        design = design_of(step)
        regime_depths, regime_width = sizes_of(design, regime)
        depths = regime_depths if depths is None else tuple(depths)
        width = regime_width if width is None else width
        if len(depths) != NUM_STAGES or not all(type(size) is int and size > 0 for size in (*depths, width)):
            raise UserError(
                f'ConvNeXtRoadmap needs {NUM_STAGES} positive whole numbers as depths and one as width, found '
                f'depths={depths} and width={width}'
            )
        super().__init__(depths, out_indices, drop_path_rate, frozen_stages, STRIDES, init_cfg)
        self.step, self.design, self.norm_eval = step, design, norm_eval
        widths = [width * DOWNSAMPLING**i for i in range(NUM_STAGES)]
        self.channels = tuple(width if design.inverted else 4 * width for width in widths)

        drop_path_rates = linear_rates(drop_path_rate, sum(depths))
        channels = width  # behind the stem
        for i in range(self.num_built):
            if i == 0:
                downsample = self._stem(in_channels, width)
            elif design.separate_downsampling:
                conv = nn.Conv2d(channels, widths[i], DOWNSAMPLING, DOWNSAMPLING)
                downsample = nn.Sequential(norm_layer(channels, design), conv)
                channels = widths[i]
            else:  # in the first block of the stage
                downsample = nn.Sequential()
            self.downsample_layers.append(downsample)
            blocks = []
            for j in range(depths[i]):
                strided = i > 0 and j == 0 and not design.separate_downsampling
                stride = DOWNSAMPLING if strided else 1
                blocks.append(RoadmapBlock(channels, widths[i], stride, design, drop_path_rates.pop(0)))
                channels = self.channels[i]
            self.stages.append(nn.Sequential(*blocks))
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(self.channels[i], eps=1e-6))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if design.layer_norm:
                    nn.init.normal_(module.weight, std=0.02)
                else:
                    nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.train(self.training)

    def _stem(self, in_channels: int, width: int) -> nn.Sequential:
        if not self.design.patchify_stem:
            conv = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
            return nn.Sequential(conv, norm_layer(width, self.design), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
        patches = nn.Conv2d(in_channels, width, 4, 4)
        if not self.design.separate_downsampling:
            return nn.Sequential(patches)
        return nn.Sequential(patches, norm_layer(width, self.design))

    def train(self, mode: bool = True) -> ConvNeXtRoadmap:
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Load the file that ``init_cfg`` names; the rest of the initialisation was done at construction.

        The file holds this step under our names, with or without a prefix. It may lack whole output norms, since
        ImageNet weights have none; its classifier (``norm``, ``head``) is left out.

        Raises:
            UserError: The file cannot be had, lacks a tensor of this step, or has one that this step does not know.
        """
        configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or ())
        for cfg in configs:
            if cfg['type'] not in ('Pretrained', PretrainedInit):
                raise UserError(f"ConvNeXtRoadmap takes init_cfg of the type 'Pretrained', found {cfg['type']!r}")
            if not self.is_init:
                self._load(cfg['checkpoint'])
        self._is_init = True

    def _load(self, source: str) -> None:
        found = tensors_of(read(source))
        own = self.state_dict()
        prefixes = {
            name[: -len('stages.0.0.conv1.weight')] for name in found if name.endswith('stages.0.0.conv1.weight')
        }
        if len(prefixes) != 1:
            raise UserError(
                f'{source} holds {len(prefixes)} networks of the roadmap, its first names are {list(found)[:3]}: give '
                f'the weights of one ConvNeXtRoadmap(step={self.step!r})'
            )
        prefix = prefixes.pop()
        given = {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}
        optional = ('num_batches_tracked',) + tuple(
            f'norm{i}.{part}'
            for i in range(NUM_STAGES)
            for part in ('weight', 'bias')
            if not {f'norm{i}.weight', f'norm{i}.bias'} & set(given)
        )
        left_out = ['norm.', 'head.']  # the classifier, and what out_indices leaves out
        left_out += [f'norm{i}.' for i in range(NUM_STAGES) if i not in self.out_indices]
        for i in range(self.num_built, NUM_STAGES):
            left_out += [f'downsample_layers.{i}.', f'stages.{i}.']
        missing = [name for name in own if name not in given and not name.endswith(optional)]
        unknown = [name for name in given if name not in own and not name.startswith(tuple(left_out))]
        differing = [name for name in own if name in given and given[name].shape != own[name].shape]
        if missing or unknown or differing:
            raise UserError(
                f'{source} does not fit ConvNeXtRoadmap(step={self.step!r}): it lacks {missing[:3]}, has {unknown[:3]} '
                f'besides and {differing[:3]} in other shapes: give the weights of this step and width'
            )
        with torch.no_grad():
            for name, value in own.items():
                if name in given:
                    value.copy_(given[name])
