"""Plan how ConvNeXt takes the place of one backbone: from what is found to the config values to change.

The old backbone and its neck are run, which says what the rest of the model receives: channels and strides. Gradients
say which features necks and heads use. The stages of ConvNeXt then take the places of the features with the same
strides, and the channels of all consumers follow. The new backbone and neck are run as well: consumers that would
receive other strides than before are an error, never a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import ConfigDict

from convnext_dense.archs import NUM_STAGES, resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.swap.config_tree import Change, as_list, with_changes
from convnext_dense.swap.consumers import (
    SEGMENTATION_HEADS,
    feature_indices,
    head_changes,
    in_channels_changes,
    neck_changes,
)
from convnext_dense.swap.formatting import error_summary
from convnext_dense.swap.probe import (
    CLASSIFIERS,
    CONVNEXTS,
    LARGER_IMAGE_SIZE,
    BackboneRun,
    Feature,
    ModuleRun,
    is_our_convnext,
    run_backbone,
    run_module,
    try_module,
)
from convnext_dense.swap.recipe import read_recipe
from convnext_dense.swap.sites import Head, Site

STAGE_STRIDES = tuple(4 * 2**stage for stage in range(NUM_STAGES))

LAST_STAGE = NUM_STAGES - 1

ADAPTER_STRIDES = (1, 2, *STAGE_STRIDES)  # that a PyramidAdapter can make

ROI_SIZE = 14  # of the regions that the shared head of a C4 detector takes

DEFAULT_ARCH = 'tiny'


@dataclass(frozen=True)
class SwapRequest:
    """What the user wants.

    Attributes:
        arch: Of our ConvNeXt; None is ``'tiny'``, or the arch of a ConvNeXt that is there already.
        weights: For the backbone; None if none were given.
        recipe: Train as the official recipes do.
        segmentation: The model is a segmentor.
        scope: Scope of the config, such as ``'mmdet'``.
    """

    arch: str | dict | None
    weights: str | None
    recipe: bool
    segmentation: bool
    scope: str


@dataclass(frozen=True)
class Found:
    """What was seen at a site.

    Attributes:
        was_convnext: Its backbone is a ConvNeXt, ours or that of mmpretrain.
        backbone: Run of the old backbone.
        neck: Run of the old neck; None if there is none, or it cannot be run on features alone.
    """

    was_convnext: bool
    backbone: BackboneRun
    neck: ModuleRun | None


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


@dataclass(frozen=True)
class Wiring:
    """How consumers take the features of the new backbone.

    Attributes:
        fit: The new backbone.
        changes: Of neck and heads; their paths begin at the model.
        has_unused_features: Some outputs of the backbone get no gradient.
        notes: For the user.
    """

    fit: Fit
    changes: tuple[Change, ...]
    has_unused_features: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SitePlan:
    """What to change for one site.

    Attributes:
        site: The backbone and its consumers, as they were found.
        arch: Of the ConvNeXt.
        was_convnext: A ConvNeXt was there.
        keeps_arch: It had the same arch.
        keeps_weights: The backbone loads the weights that it loaded before.
        changes: Config values; their paths begin at the model.
        has_unused_features: Some outputs of the backbone get no gradient.
        old_parameters, new_parameters: Names in the model of the parameters of the backbone, before and after.
        notes: For the user.
    """

    site: Site
    arch: str | dict
    was_convnext: bool
    keeps_arch: bool
    keeps_weights: bool
    changes: tuple[Change, ...]
    has_unused_features: bool
    old_parameters: tuple[str, ...]
    new_parameters: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class HeadInputs:
    """The features that heads take.

    Attributes:
        taken: For each head the positions of its features.
        used: Positions of those on which the output of any head depends.
    """

    taken: tuple[tuple[int, ...], ...]
    used: frozenset[int]

    @property
    def all_taken(self) -> list[int]:
        """Positions of the features that any head takes, ascending."""
        return sorted({index for indices in self.taken for index in indices})


def plan_site(site: Site, request: SwapRequest) -> SitePlan:
    """Plan the swap of one backbone.

    The old neck and the new one are each run once; the backbones once in training and once in testing, which have to
    agree. Two cases need more: a neck that fails on small features is run on larger ones, and a neck that turns out to
    need the features that it ignores is built once more with all of them.

    Args:
        site: What to swap.
        request: What the user wants.

    Raises:
        UserError: ConvNeXt cannot take the place of this backbone.
    """
    found = _observe(site, request.scope)
    new = _new_backbone(site, found, request)
    inputs = _inputs_behind_neck(site, found)
    notes = []
    if site.neck is None:
        wiring = _wire_to_heads(site, new, found.backbone, found.backbone.features, inputs)
    elif found.neck is not None and _makes_needless_pyramid(found.backbone, found.neck, inputs):
        notes.append(
            f'{site.neck_type} made a pyramid of features that all had one stride; ConvNeXt is a pyramid: removed'
        )
        wiring = _wire_to_heads(site, new, found.backbone, found.neck.outputs, inputs)
    else:
        if found.neck is None:
            notes.append(
                f'{site.neck_type} could not be run here: its channels were rewritten by value and not checked'
            )
        wiring = _wire_through_neck(site, new, found, inputs)
    notes += wiring.notes
    if wiring.has_unused_features:
        notes.append(
            f'features of {site.place} are taken but not used, as before: '
            'find_unused_parameters=True, or several GPUs would stop at their norms'
        )
    return SitePlan(
        site=site,
        arch=new.arch,
        was_convnext=found.was_convnext,
        keeps_arch=new.keeps_arch,
        keeps_weights=new.keeps_weights,
        changes=(Change(site.path, wiring.fit.backbone), *wiring.changes),
        has_unused_features=wiring.has_unused_features,
        old_parameters=tuple(f'{site.place}.{name}' for name in found.backbone.parameter_names),
        new_parameters=tuple(f'{site.place}.{name}' for name in wiring.fit.parameter_names),
        notes=tuple(notes),
    )


def _observe(site: Site, scope: str) -> Found:
    """Run the old backbone and its neck, on larger images if the neck needs them, such as that of SSD."""
    is_theirs = site.backbone.type in CONVNEXTS or (scope in CLASSIFIERS and site.backbone.type == 'ConvNeXt')
    was_convnext = is_theirs or is_our_convnext(site.backbone)
    backbone = site.backbone
    if is_theirs:
        # Our class knows the arguments of theirs: this works without mmpretrain.
        backbone = ConfigDict(_arguments(site.backbone), type='mmengine.ConvNeXt')
    run = run_backbone(backbone)
    if site.neck is None:
        return Found(was_convnext, run, None)
    neck_run = try_module(site.neck, run.features)
    if neck_run is None:
        larger_run = run_backbone(backbone, LARGER_IMAGE_SIZE)
        neck_run = try_module(site.neck, larger_run.features)
        if neck_run is not None:
            run = larger_run
    return Found(was_convnext, run, neck_run)


def _arguments(backbone: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in backbone.items() if key not in ('type', '_scope_')}


def _new_backbone(site: Site, found: Found, request: SwapRequest) -> NewBackbone:
    """Choose the arguments of the ConvNeXt, all but its outputs; a ConvNeXt that is there keeps its own."""
    old = _arguments(site.backbone)
    old_arch = old.get('arch', DEFAULT_ARCH)
    keeps_arch = found.was_convnext and (request.arch is None or resolve_arch(request.arch) == resolve_arch(old_arch))
    arch = old_arch if keeps_arch else request.arch or DEFAULT_ARCH
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
    if request.recipe:
        arguments.update(drop_path_rate=recipe.drop_path_rate)
        # ConvNeXt V2 has no layer scale.
        arguments.update(layer_scale_init_value=0.0 if arguments.get('use_grn') else recipe.layer_scale_init_value)
    keeps_weights = keeps_arch and is_pretrained(old.get('init_cfg'))
    if request.weights:
        arguments.update(init_cfg=dict(type='Pretrained', checkpoint=request.weights))
    elif keeps_weights:
        arguments.update(init_cfg=old['init_cfg'])
    return NewBackbone(arch, arguments, keeps_arch, keeps_weights)


def is_pretrained(init_cfg: Any) -> bool:
    """Return whether an ``init_cfg`` loads weights."""
    return any(isinstance(part, dict) and part.get('type') == 'Pretrained' for part in as_list(init_cfg))


def _inputs_behind_neck(site: Site, found: Found) -> HeadInputs:
    """Return what the heads take of the old backbone, or of its neck; nothing if the neck could not be run."""
    if site.neck is None:
        return _inputs_of_heads(site.heads, found.backbone.features)
    if found.neck is not None:
        return _inputs_of_heads(site.heads, found.neck.outputs)
    return HeadInputs((), frozenset())


def _inputs_of_heads(heads: Sequence[Head], features: Sequence[Feature]) -> HeadInputs:
    """Find the features that each head takes: those that it names, and those that its gradients reach."""
    taken, used = [], set()
    previous = None  # output of the decode head before, in a list of them
    for head in heads:
        indices, run = list(range(len(features))), None
        if head.name in SEGMENTATION_HEADS:
            follows_another = head.name == 'decode_head' and head.number > 0
            if not follows_another:
                run = try_module(head.config, features)
            elif previous:
                run = try_module(head.config, features, previous)
            if head.name == 'decode_head':
                previous = run.outputs[0] if run else None
            named = feature_indices(head.config, len(features))
            if run:
                indices = sorted({*run.used, *named})
            elif named:
                indices = sorted(named)
            elif isinstance(head.config.get('in_channels'), int):
                indices = [len(features) - 1]
        taken.append(tuple(indices))
        used.update(run.used if run else indices)
    return HeadInputs(tuple(taken), frozenset(used))


def _makes_needless_pyramid(backbone: BackboneRun, neck: ModuleRun, inputs: HeadInputs) -> bool:
    """Return whether a neck makes, of features with one stride, such as ViT's, what ConvNeXt's stages are."""
    if not inputs.all_taken:
        return False
    strides = [backbone.features[index].stride for index in _used_by_neck(backbone, neck)]
    taken_strides = [neck.outputs[index].stride for index in inputs.all_taken]
    return len(set(strides)) == 1 and not _choose_stages(strides) and _choose_stages(taken_strides) is not None


def _used_by_neck(backbone: BackboneRun, neck: ModuleRun | None) -> list[int]:
    """Return the features that a neck has to get: all but those at the start that it does not use."""
    everything = list(range(len(backbone.features)))
    if neck is None:
        return everything
    used = list(neck.used)
    return used if used == everything[used[0] :] else everything


def _wire_to_heads(
    site: Site, new: NewBackbone, old_run: BackboneRun, old: Sequence[Feature], inputs: HeadInputs
) -> Wiring:
    """Let the heads take the features of ConvNeXt.

    Args:
        old: What was in front of the heads: features of the old backbone, or of its needless neck.
        inputs: What the heads took of them.
    """
    used = inputs.all_taken
    if not used:
        raise UserError(f'nothing next to {site.place} takes its features: give a config with a neck or a head')
    shared_head = None
    if site.neck is None:
        shared_head = next((head for head in site.heads if head.config.get('shared_head')), None)
    # A head with one number of channels for several features needs them equal.
    needs_equal_channels = len(used) > 1 and any(
        head.name not in SEGMENTATION_HEADS and isinstance(head.config.get('in_channels'), int) for head in site.heads
    )
    fit = _fit_backbone(
        site,
        new,
        wanted=[old[index] for index in used],
        image_size=old_run.image_size,
        last_stage=LAST_STAGE - 1 if shared_head else LAST_STAGE,
        may_use_stages=not needs_equal_channels,
    )
    changes = []
    if site.neck is not None or fit.adapter:
        changes.append(Change(site.neck_path, fit.adapter))
    position = {index: new_index for new_index, index in enumerate(used)}
    changes += _changes_of_heads(site, inputs, old, fit.features, position)
    if shared_head:
        changes += _changes_of_shared_head(shared_head, old[used[-1]], new)
    has_unused_features = not fit.adapter and not inputs.used.issuperset(used)
    return Wiring(fit, tuple(changes), has_unused_features, _adapter_notes(site, fit))


def _wire_through_neck(site: Site, new: NewBackbone, found: Found, inputs: HeadInputs) -> Wiring:
    """Let the neck take the features of ConvNeXt, at first without those that it ignores."""
    old = found.backbone.features
    everything = list(range(len(old)))
    used = _used_by_neck(found.backbone, found.neck)
    try:
        fit, neck, outputs = _fit_neck(site, new, found, used)
    except NeckError:
        if used == everything:
            raise
        used = everything
        fit, neck, outputs = _fit_neck(site, new, found, used)
    behind_adapter = as_list(neck)
    changes = [Change(site.neck_path, [fit.adapter, *behind_adapter] if fit.adapter else neck)]
    if found.neck is not None:
        position = {index: index for index in range(len(found.neck.outputs))}
        changes += _changes_of_heads(site, inputs, found.neck.outputs, outputs, position)
    used_by_neck = used if found.neck is None else found.neck.used
    has_unused_features = not fit.adapter and not set(used_by_neck).issuperset(used)
    return Wiring(fit, tuple(changes), has_unused_features, _adapter_notes(site, fit))


class NeckError(UserError):
    """A neck cannot work behind ConvNeXt."""


def _fit_neck(site: Site, new: NewBackbone, found: Found, used: Sequence[int]) -> tuple[Fit, Any, tuple[Feature, ...]]:
    """Fit backbone and neck to each other.

    Args:
        used: The old features that the new backbone reproduces.

    Returns:
        The backbone, the config of the neck, and the outputs of the neck; the latter are empty if the old neck could
        not be run.

    Raises:
        NeckError: The neck does not take these features, or works at other strides than before.
    """
    old = found.backbone.features
    fit = _fit_backbone(site, new, [old[index] for index in used], found.backbone.image_size)
    neck = site.neck
    if not fit.adapter:
        first_neck = as_list(neck)[0]
        first_neck = with_changes(first_neck, neck_changes(first_neck, old, fit.features, len(old) - len(used)))
        neck = type(neck)([first_neck, *neck[1:]]) if isinstance(neck, (list, tuple)) else first_neck
    if found.neck is None:
        return fit, neck, ()
    try:
        run = run_module(neck, fit.features)
    except Exception as error:
        raise NeckError(f'{site.neck_type} does not take the features of ConvNeXt: {error_summary(error)}') from error
    old_strides = [old[index].stride for index in found.neck.used]
    new_strides = [fit.features[index].stride for index in run.used]
    if new_strides != old_strides:
        raise NeckError(f'{site.neck_type} took features at strides {old_strides}, now it takes {new_strides}')
    if [feature.stride for feature in run.outputs] != [feature.stride for feature in found.neck.outputs]:
        raise NeckError(
            f'{site.neck_type} gave features of {[feature.shape for feature in found.neck.outputs]}, now '
            f'of {[feature.shape for feature in run.outputs]}'
        )
    return fit, neck, run.outputs


def _fit_backbone(
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
    chosen = _choose_stages(strides, last_stage) if may_use_stages else None
    adapter = None
    if chosen is None:
        stages, output_stride = _stages_for_adapter(site, wanted), STAGE_STRIDES[-1]
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


def _choose_stages(strides: Sequence[int | None], last_stage: int = LAST_STAGE) -> tuple[tuple[int, ...], int] | None:
    """Choose stages of ConvNeXt for features at these strides.

    The whole network is used: features at stride 8 come out of a dilated last stage, not out of the second one.

    Returns:
        The stages and ``output_stride``; None if no stages of any ``output_stride`` have these strides.
    """
    for output_stride in (32, 16, 8):
        stages = []
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
            f'strides {strides}: from ConvNeXt strides 1, 2, 4, 8, 16 and 32 can be had'
        )
    finest = min(stride for stride in strides if stride is not None)
    return tuple(stage for stage in range(NUM_STAGES) if STAGE_STRIDES[stage] >= finest)


def _adapter_notes(site: Site, fit: Fit) -> tuple[str, ...]:
    if not fit.adapter:
        return ()
    note = (
        f'{site.place} gave features at strides {list(fit.adapter.strides)}, which are no stages of ConvNeXt: '
        'a PyramidAdapter makes them'
    )
    return (note,)


def _changes_of_heads(
    site: Site, inputs: HeadInputs, old: Sequence[Feature], new: Sequence[Feature], position: Mapping[int, int]
) -> list[Change]:
    """Return the changes of all heads of a site; their paths begin at the model.

    Args:
        inputs: What the heads took of ``old``.
        old: The features that were in front of the heads.
        new: Those that are now.
        position: Where in ``new`` a feature of ``old`` is.

    Raises:
        UserError: With these changes a head would take features at other strides.
    """
    changes = []
    new_heads = []
    for head in site.heads:
        changes_of_head = head_changes(head.name, head.config, old, new, position)
        new_config = with_changes(head.config, changes_of_head)
        new_heads.append(Head(head.name, head.number, head.path, new_config))
        changes += [change.below(head.path) for change in changes_of_head]
    new_inputs = _inputs_of_heads(new_heads, new)
    for head, old_indices, new_indices in zip(site.heads, inputs.taken, new_inputs.taken):
        old_strides = [old[index].stride for index in old_indices]
        new_strides = [new[index].stride for index in new_indices]
        if old_strides != new_strides:
            raise UserError(f'{head.name} took features at strides {old_strides}, now it takes {new_strides}')
    return changes


def _changes_of_shared_head(head: Head, feature: Feature, new: NewBackbone) -> list[Change]:
    """Return the changes that put ConvNeXt's last stage in the place of the last stage of a C4 ResNet.

    Args:
        head: With a ``shared_head``.
        feature: Of the old backbone, out of which regions are cut.
    """
    shared_head = head.config.shared_head
    regions = Feature((2, feature.channels, ROI_SIZE, ROI_SIZE), feature.stride)
    try:
        old_channels = run_module(shared_head, [regions], takes_one=True).outputs[0].channels
    except Exception as error:
        raise UserError(
            f'shared_head {shared_head.type} does not run on the features of the old backbone: {error_summary(error)}'
        ) from error
    new_shared_head = dict(type='ConvNeXtSharedHead')
    for key in ('arch', 'drop_path_rate', 'layer_scale_init_value', 'use_grn', 'init_cfg'):
        if key in new.arguments:
            new_shared_head[key] = new.arguments[key]
    new_channels = resolve_arch(new.arch)[1][-1]
    changes = [Change(('shared_head',), new_shared_head)]
    for change in in_channels_changes(head.config, old_channels, new_channels):
        if change.path[0] != 'shared_head':
            changes.append(change)
    return [change.below(head.path) for change in changes]
