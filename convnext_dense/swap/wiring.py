"""How the neck and heads of a site take the features of its ConvNeXt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convnext_dense.archs import resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.swap.backbone import LAST_STAGE, Fit, NewBackbone, choose_stages, fit_backbone
from convnext_dense.swap.config_tree import Change, as_list, with_changes
from convnext_dense.swap.consumers import SEGMENTATION_HEADS, head_changes, in_channels_changes, neck_changes
from convnext_dense.swap.formatting import error_summary
from convnext_dense.swap.observe import Found, HeadInputs, inputs_of_heads
from convnext_dense.swap.probe import Feature, run_module
from convnext_dense.swap.sites import Head, Site

ROI_SIZE = 14  # of the regions that the shared head of a C4 detector takes


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


class NeckError(UserError):
    """A neck cannot work behind ConvNeXt."""


def makes_needless_pyramid(found: Found) -> bool:
    """Return whether the neck makes, of features with one stride, such as ViT's, what ConvNeXt's stages are."""
    if found.neck is None or not found.inputs.all_taken:
        return False
    strides = [found.backbone.features[index].stride for index in _used_by_neck(found)]
    taken_strides = [found.neck.outputs[index].stride for index in found.inputs.all_taken]
    return len(set(strides)) == 1 and not choose_stages(strides) and choose_stages(taken_strides) is not None


def wire_to_heads(site: Site, new: NewBackbone, found: Found, old: Sequence[Feature]) -> Wiring:
    """Let the heads take the features of ConvNeXt.

    Args:
        site: The backbone and its consumers, as they were found.
        new: The ConvNeXt.
        found: What was seen at the site.
        old: What was in front of the heads: features of the old backbone, or of its needless neck.

    Raises:
        UserError: No head takes any feature, or one would take features at other strides than before.
    """
    used = found.inputs.all_taken
    if not used:
        raise UserError(f'nothing next to {site.place} takes its features: give a config with a neck or a head')
    shared_head = None
    if site.neck is None:
        shared_head = next((head for head in site.heads if head.config.get('shared_head')), None)
    # A head with one number of channels for several features needs them equal.
    needs_equal_channels = len(used) > 1 and any(
        head.name not in SEGMENTATION_HEADS and isinstance(head.config.get('in_channels'), int) for head in site.heads
    )
    fit = fit_backbone(
        site,
        new,
        wanted=[old[index] for index in used],
        image_size=found.backbone.image_size,
        last_stage=LAST_STAGE - 1 if shared_head else LAST_STAGE,
        may_use_stages=not needs_equal_channels,
    )
    changes = []
    if site.neck is not None or fit.adapter:
        changes.append(Change(site.neck_path, fit.adapter))
    position = {index: new_index for new_index, index in enumerate(used)}
    changes += _changes_of_heads(site, found.inputs, old, fit.features, position)
    if shared_head:
        changes += _changes_of_shared_head(shared_head, old[used[-1]], new)
    has_unused_features = not fit.adapter and not found.inputs.used.issuperset(used)
    return Wiring(fit, tuple(changes), has_unused_features, _adapter_notes(site, fit))


def wire_through_neck(site: Site, new: NewBackbone, found: Found) -> Wiring:
    """Let the neck take the features of ConvNeXt, at first without those that it ignores.

    Args:
        site, new, found: As of :func:`wire_to_heads`.

    Raises:
        UserError: The neck or a head would take features at other strides than before.
    """
    old = found.backbone.features
    everything = list(range(len(old)))
    used = _used_by_neck(found)
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
        changes += _changes_of_heads(site, found.inputs, found.neck.outputs, outputs, position)
    with_gradient = used if found.neck is None else found.neck.used
    has_unused_features = not fit.adapter and not set(with_gradient).issuperset(used)
    return Wiring(fit, tuple(changes), has_unused_features, _adapter_notes(site, fit))


def _used_by_neck(found: Found) -> list[int]:
    """Return the features that the neck has to get: all but those at the start that it does not use."""
    everything = list(range(len(found.backbone.features)))
    if found.neck is None:
        return everything
    used = list(found.neck.used)
    return used if used == everything[used[0] :] else everything


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
    fit = fit_backbone(site, new, [old[index] for index in used], found.backbone.image_size)
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
    new_inputs = inputs_of_heads(new_heads, new)
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


def _adapter_notes(site: Site, fit: Fit) -> tuple[str, ...]:
    if not fit.adapter:
        return ()
    note = (
        f'{site.place} gave features at strides {list(fit.adapter.strides)}, which are no stages of ConvNeXt: '
        'a PyramidAdapter makes them'
    )
    return (note,)
