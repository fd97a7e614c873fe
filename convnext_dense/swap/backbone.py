"""The ConvNeXt of a site: its arguments, and outputs at the strides that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import ConfigDict

from convnext_dense.archs import NUM_STAGES, resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.swap.config_tree import arguments_of, as_list
from convnext_dense.swap.observe import Found
from convnext_dense.swap.probe import CLASSIFIERS, Feature, run_backbone, run_module
from convnext_dense.swap.recipe import read_recipe
from convnext_dense.swap.sites import Site

STAGE_STRIDES = tuple(4 * 2**stage for stage in range(NUM_STAGES))

LAST_STAGE = NUM_STAGES - 1

ADAPTER_STRIDES = (1, 2, *STAGE_STRIDES)  # that a PyramidAdapter can make

DEFAULT_ARCH = 'tiny'


@dataclass(frozen=True)
class SwapRequest:
    """What the user wants.

    Attributes:
        arch: Of our ConvNeXt; None is ``'tiny'``, or the arch of a ConvNeXt that is there already.
        weights: For the backbone; None if none were given.
        weights_arguments: Of the ConvNeXt that these belong to, as far as known.
        recipe: Train as the official recipes do.
        segmentation: The model is a segmentor.
        scope: Scope of the config, such as ``'mmdet'``.
    """

    arch: str | dict | None
    weights: str | None
    weights_arguments: Mapping[str, Any]
    recipe: bool
    segmentation: bool
    scope: str


@dataclass(frozen=True)
class NewBackbone:
    """The ConvNeXt of a site.

    Attributes:
        arch: Its arch.
        arguments: Its config without the outputs.
        keeps_arch: A ConvNeXt of this arch was there: weights of the old model fit.
        keeps_weights: It loads the weights that the one before loaded.
    """

    arch: str | dict
    arguments: dict[str, Any]
    keeps_arch: bool
    keeps_weights: bool


@dataclass(frozen=True)
class Fit:
    """A ConvNeXt that gives features at wanted strides.

    Attributes:
        backbone: Its config.
        adapter: Config of the PyramidAdapter behind it; None if its stages have these strides.
        features: What comes out, behind the adapter if there is one.
        parameter_names: Of the backbone.
    """

    backbone: ConfigDict
    adapter: ConfigDict | None
    features: tuple[Feature, ...]
    parameter_names: tuple[str, ...]


def new_backbone(site: Site, found: Found, request: SwapRequest) -> NewBackbone:
    """Choose the arguments of the ConvNeXt, all but its outputs; a ConvNeXt that is there keeps its own."""
    old = arguments_of(site.backbone)
    old_arch = old.get('arch', DEFAULT_ARCH)
    wanted_arch = request.weights_arguments.get('arch', request.arch)
    keeps_arch = found.was_convnext and (wanted_arch is None or resolve_arch(wanted_arch) == resolve_arch(old_arch))
    arch = old_arch if keeps_arch else wanted_arch or DEFAULT_ARCH
    recipe = read_recipe(arch, request.segmentation)
    # In the scope of a classifier, 'ConvNeXt' is theirs.
    arguments = dict(type='mmengine.ConvNeXt' if request.scope in CLASSIFIERS else 'ConvNeXt', arch=arch)
    if found.was_convnext:
        replaced = ('arch', 'init_cfg', 'pretrained', 'gap_before_final_norm', 'out_indices', 'output_stride')
        arguments.update({key: value for key, value in old.items() if key not in replaced})
    else:
        arguments.update(layer_scale_init_value=recipe.layer_scale_init_value)
        in_channels = old.get('in_channels', 3)
        if isinstance(in_channels, int) and in_channels not in (0, 3):
            arguments.update(in_channels=in_channels)
        if old.get('with_cp'):
            arguments.update(with_cp=True)
    if request.recipe:
        arguments.update(drop_path_rate=recipe.drop_path_rate)
        # ConvNeXt V2 has no layer scale.
        arguments.update(layer_scale_init_value=0.0 if arguments.get('use_grn') else recipe.layer_scale_init_value)
    arguments.update({key: value for key, value in request.weights_arguments.items() if key != 'arch'})
    keeps_weights = keeps_arch and is_pretrained(old.get('init_cfg'))
    if request.weights:
        arguments.update(init_cfg=dict(type='Pretrained', checkpoint=request.weights))
    elif keeps_weights:
        arguments.update(init_cfg=old['init_cfg'])
    return NewBackbone(arch, arguments, keeps_arch, keeps_weights)


def is_pretrained(init_cfg: Any) -> bool:
    """Return whether an ``init_cfg`` loads weights."""
    return any(isinstance(part, dict) and part.get('type') == 'Pretrained' for part in as_list(init_cfg))


def pretrained_source(init_cfg: Any) -> str:
    """Return where an ``init_cfg`` loads weights from; empty if it loads none."""
    for part in as_list(init_cfg):
        if isinstance(part, dict) and part.get('type') == 'Pretrained':
            return part['checkpoint']
    return ''


def fit_backbone(
    site: Site,
    new: NewBackbone,
    wanted: Sequence[Feature],
    image_size: int,
    last_stage: int = LAST_STAGE,
    may_use_stages: bool = True,
) -> Fit:
    """Set the outputs of ConvNeXt to the strides of other features, and run it.

    Args:
        wanted: The features to reproduce.
        image_size: Of the image that they are of, in pixels.
        last_stage: The stage that gives the last of them.
        may_use_stages: The stages may be the outputs; otherwise there is always an adapter.

    Raises:
        UserError: ConvNeXt cannot give features at these strides.
    """
    strides = [feature.stride for feature in wanted]
    chosen = choose_stages(strides, last_stage) if may_use_stages else None
    adapter = None
    if chosen is None:
        stages = _stages_for_adapter(site, wanted)
        output_stride = STAGE_STRIDES[-1]
        channels = resolve_arch(new.arch)[1]
        adapter = ConfigDict(
            type='PyramidAdapter',
            in_channels=[channels[stage] for stage in stages],
            in_strides=[STAGE_STRIDES[stage] for stage in stages],
            out_channels=[feature.channels for feature in wanted],
            strides=strides,
        )
    else:
        stages, output_stride = chosen
    backbone = ConfigDict(new.arguments)
    if len(stages) < NUM_STAGES:
        backbone.out_indices = stages
    if output_stride != STAGE_STRIDES[-1]:
        backbone.output_stride = output_stride
    run = run_backbone(backbone, image_size)
    features = run_module(adapter, run.features).outputs if adapter else run.features
    new_strides = [feature.stride for feature in features]
    if new_strides != strides:
        raise UserError(
            f'{site.place} gave features at strides {strides} for an image of {image_size}x{image_size}, ConvNeXt '
            f'would give {new_strides}'
        )
    return Fit(backbone, adapter, features, run.parameter_names)


def choose_stages(strides: Sequence[int | None], last_stage: int = LAST_STAGE) -> tuple[tuple[int, ...], int] | None:
    """Choose stages of ConvNeXt for features at these strides.

    The whole network is used: features at stride 8 come out of a dilated last stage, not out of the second one.

    Returns:
        The stages and ``output_stride``; None if no stages of any ``output_stride`` have these strides.
    """
    for output_stride in (32, 16, 8):
        stages: list[int] = []
        num_available = last_stage + 1
        for stride in reversed(strides):
            candidates = [stage for stage in range(num_available) if min(STAGE_STRIDES[stage], output_stride) == stride]
            if not candidates:
                break
            stages.insert(0, candidates[-1])
            num_available = candidates[-1]
        if len(stages) == len(strides) and stages[-1] == last_stage:
            # A last stage that is not built needs no dilation.
            return tuple(stages), output_stride if last_stage == LAST_STAGE else STAGE_STRIDES[-1]
    return None


def _stages_for_adapter(site: Site, wanted: Sequence[Feature]) -> tuple[int, ...]:
    """Return the stages of which a PyramidAdapter can make these features."""
    strides = [feature.stride for feature in wanted]
    if any(stride not in ADAPTER_STRIDES for stride in strides):
        raise UserError(
            f'the old backbone {site.backbone.type} gives features of {[feature.shape for feature in wanted]}, at '
            f'strides {strides}: ConvNeXt can provide strides 1, 2, 4, 8, 16 and 32'
        )
    finest = min(stride for stride in strides if stride is not None)
    return tuple(stage for stage in range(NUM_STAGES) if STAGE_STRIDES[stage] >= finest)
