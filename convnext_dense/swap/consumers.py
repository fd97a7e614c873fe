"""How the config values of a neck or head follow from the features that it receives.

Every function returns changes whose paths begin at the neck or head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import ConfigDict

from convnext_dense.errors import UserError
from convnext_dense.swap.config_tree import Change, as_list, nested_dicts
from convnext_dense.swap.probe import Feature

# Heads of mmseg choose their features by in_index.
SEGMENTATION_HEADS = ('decode_head', 'auxiliary_head')


def neck_changes(neck: ConfigDict, old: Sequence[Feature], new: Sequence[Feature], num_dropped: int) -> list[Change]:
    """Return the changes of channels and levels of a neck behind the backbone.

    Args:
        neck: Its config; of several in a row the first.
        old: All features of the old backbone.
        new: All features of the new one.
        num_dropped: How many features of the old one, the first ones, have no counterpart in the new one.

    Raises:
        UserError: The channels of the neck are not those of the old backbone.
    """
    old_channels = [feature.channels for feature in old]
    new_channels = [feature.channels for feature in new]
    changes = []
    for key in ('in_channels', 'in_channel'):
        value = neck.get(key)
        if isinstance(value, (list, tuple)):
            if list(value) == old_channels:
                channels = new_channels
            elif list(value) == old_channels[::-1]:
                channels = new_channels[::-1]
            else:
                raise UserError(
                    f'{neck.type} has {key}={list(value)}, the old backbone gives {old_channels}: correct it'
                )
            changes.append(Change((key,), type(value)(channels)))
            out_channels = neck.get('out_channels')
            if isinstance(out_channels, (list, tuple)) and list(out_channels[: len(value)]) == list(value):
                # The features pass through the neck as they are; it adds further ones.
                further = out_channels[len(value) :]
                changes.append(Change(('out_channels',), type(out_channels)([*channels, *further])))
        elif isinstance(value, int) and value in old_channels:
            changes.append(Change((key,), new_channels[old_channels.index(value) - num_dropped]))
    if num_dropped:
        for key in ('start_level', 'end_level'):
            if neck.get(key, -1) >= num_dropped:
                changes.append(Change((key,), neck[key] - num_dropped))
    return changes


def head_changes(
    name: str, head: ConfigDict, old: Sequence[Feature], new: Sequence[Feature], position: Mapping[int, int]
) -> list[Change]:
    """Return the changes of channels and indices of a head.

    Args:
        name: Key of the head in the model.
        head: Its config.
        old: All features that were in front of the heads.
        new: All that are now.
        position: Where in ``new`` a feature of ``old`` is; those without a counterpart are left out.
    """
    old_channels = [feature.channels for feature in old]
    # New number of channels by the old one; of several features with the same number the first counts.
    replaced = {}
    for index, new_index in position.items():
        if old_channels.index(old_channels[index]) == index:
            replaced[old_channels[index]] = new[new_index].channels
    changes = []
    if not head.get('shared_head'):
        changes += _region_changes(head, replaced)
    for path, part in nested_dicts(head):
        is_head = part is head
        takes_one_feature = is_head and name in SEGMENTATION_HEADS and isinstance(part.get('in_channels'), int)
        if 'in_index' in part or takes_one_feature:
            changes += [change.below(path) for change in _selection_changes(part, old_channels, new, position)]
        elif is_head or 'featmap_strides' in part:
            key = 'out_channels' if 'featmap_strides' in part else 'in_channels'
            value = part.get(key)
            if isinstance(value, (list, tuple)) and list(value) == [old_channels[index] for index in position]:
                channels = [new[new_index].channels for new_index in position.values()]
                changes.append(Change((*path, key), type(value)(channels)))
            elif isinstance(value, int) and value in replaced:
                changes.append(Change((*path, key), replaced[value]))
    return changes


def in_channels_changes(head: ConfigDict, old_channels: int, new_channels: int) -> list[Change]:
    """Return the changes of every ``in_channels`` of a head that is ``old_channels``."""
    changes = []
    for path, part in nested_dicts(head):
        if part.get('in_channels') == old_channels:
            changes.append(Change((*path, 'in_channels'), new_channels))
    return changes


def feature_indices(head: ConfigDict, num_features: int) -> set[int]:
    """Return the features that every ``in_index`` of a head names, counted from the first."""
    indices: set[int] = set()
    for _, part in nested_dicts(head):
        if 'in_index' in part:
            indices.update(index % num_features for index in as_list(part.in_index))
    return indices


def _region_changes(head: ConfigDict, replaced: Mapping[int, int]) -> list[Change]:
    """Return the changes of what takes regions: they have as many channels as the feature they are cut out of."""
    changes = []
    for _, extractor in nested_dicts(head):
        channels = extractor.get('out_channels')
        if 'featmap_strides' in extractor and isinstance(channels, int) and channels in replaced:
            changes += in_channels_changes(head, channels, replaced[channels])
    return changes


def _selection_changes(
    head: ConfigDict, old_channels: Sequence[int], new: Sequence[Feature], position: Mapping[int, int]
) -> list[Change]:
    """Return the changes of a head of mmseg, which selects features by ``in_index`` (default: the last one)."""
    changes = []
    in_index = head.get('in_index', -1)
    indices = [index % len(old_channels) for index in as_list(in_index)]
    new_indices = [position[index] for index in indices]
    if isinstance(in_index, (list, tuple)):
        changes.append(Change(('in_index',), type(in_index)(new_indices)))
    elif in_index >= 0 or new_indices[0] != len(new) - 1:
        changes.append(Change(('in_index',), new_indices[0]))

    in_channels = head.get('in_channels')
    selected_old = [old_channels[index] for index in indices]
    selected_new = [new[index].channels for index in new_indices]
    if isinstance(in_channels, (list, tuple)) and list(in_channels) == selected_old:
        changes.append(Change(('in_channels',), type(in_channels)(selected_new)))
    elif isinstance(in_channels, int) and [in_channels] == selected_old:
        changes.append(Change(('in_channels',), selected_new[0]))
    else:
        return changes
    is_as_wide_as_its_inputs = head.get('channels') == sum(selected_old)
    if is_as_wide_as_its_inputs and (len(selected_old) > 1 or head.get('num_convs') == 0):
        changes.append(Change(('channels',), sum(selected_new)))
    # The fine features of DeepLabV3+ are always the first ones.
    if head.get('c1_in_channels') == old_channels[0] and 0 in position:
        changes.append(Change(('c1_in_channels',), new[position[0]].channels))
    return changes
