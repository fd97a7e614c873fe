"""The changes of a model that follow from the data: as many classes in every head, and boxes only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

from convnext_dense.errors import UserError

# Parts of a model that say nothing about classes.
WITHOUT_CLASSES = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg')
COUNTS = ('num_classes', 'num_things_classes')


class Source(str):
    """Python source, which is written as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def class_changes(part: Mapping[str, Any], path: str = '_base_.model') -> dict[str, Any]:
    """Return what a config that inherits from a model has to set so that every head has ``num_classes`` classes.

    Args:
        part: The model, or a part of it.
        path: How the config names it.

    Returns:
        Nested dicts of :class:`Source`, which use the variable ``num_classes``.
    """
    changes: dict[str, Any] = {}
    for key, value in part.items():
        if key in WITHOUT_CLASSES:
            continue
        if key in COUNTS:
            changes[key] = Source('num_classes')
        elif key == 'num_stuff_classes':
            changes[key] = 0
        elif key == 'class_weight' and isinstance(value, (list, tuple)):
            changes[key] = _class_weight(value)
        else:
            inner = _inner_changes(value, f'{path}.{key}')
            if inner:
                changes[key] = inner
    return changes


def _inner_changes(value: Any, path: str) -> dict[str, Any] | Source | list | None:
    if isinstance(value, dict):
        return class_changes(value, path)
    if isinstance(value, (list, tuple)):
        return _changes_of_list(value, path)
    return None


def _class_weight(weights: list[float] | tuple[float, ...]) -> Source | None:
    """Return weights for our classes: one weight for all, and the last one for no object; None for a table by class."""
    if len(set(weights)) <= 2 and len(set(weights[:-1])) == 1:
        first, last = weights[0], weights[-1]
        return Source(f'[{first}] * num_classes + [{last}]') if first != last else None
    return None


def _changes_of_list(items: list | tuple, path: str) -> Source | list | None:
    """Return a list of heads with our classes: mmengine replaces lists as a whole."""
    changes = [class_changes(item, f'{path}[{i}]') if isinstance(item, dict) else {} for i, item in enumerate(items)]
    if not any(changes):
        return None
    if all(change == {'num_classes': 'num_classes'} for change in changes):
        return Source(f'[dict(head, num_classes=num_classes) for head in {path}]')
    return [_merged(item, change) if isinstance(item, dict) else item for item, change in zip(items, changes)]


def _merged(value: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(value)
    for key, change in changes.items():
        merged[key] = _merged(value[key], change) if isinstance(change, dict) else change
    return merged


def box_changes(model: ConfigDict) -> dict[str, Any]:
    """Return the changes that leave out the mask head of a two-stage detector; empty if it has none.

    Raises:
        UserError: The model works by masks in another way.
    """
    if not (model.get('roi_head') or {}).get('mask_head'):
        return {}
    if (model.roi_head.get('semantic_head') or model.roi_head.get('mask_iou_head')) or model.type == 'PointRend':
        raise UserError(f'{model.type} needs outlines, but the data have only boxes: use a detector without masks')
    changes: dict[str, Any] = dict(roi_head=dict(mask_roi_extractor=None, mask_head=None))
    if model.type == 'MaskRCNN':
        changes['type'] = 'FasterRCNN'
    return changes


def merged_changes(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested changes merged into one; None, which removes a part, wins over changes inside it."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = merged.get(key)
            if key in merged and old is None:
                continue
            merged[key] = merged_changes(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
