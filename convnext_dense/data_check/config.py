"""Check what a config says about its data, heads and evaluators, without opening files."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, Registry

from convnext_dense.data_check.findings import Finding
from convnext_dense.data_check.splits import Split, as_list, dicts_with_key, step_name

# Parts of a model whose num_classes is not that of the data set: mmdet's NumClassCheckHook leaves them out too.
OTHER_CLASSES = ('backbone', 'rpn_head', 'semantic_head', 'data_preprocessor', 'reid', 'teacher')
BATCH_NORMS = ('BN', 'BN1d', 'BN2d', 'SyncBN', 'MMSyncBN')


def check_config(cfg: Config, splits: Sequence[Split]) -> list[Finding]:
    """Check a config against the classes of its data sets.

    Args:
        cfg: A config of mmdet or mmseg, whose toolkit can be imported.
        splits: The data sets that will be used.
    """
    names = list(dict.fromkeys(split.name for split in splits))
    findings = [*_class_names(splits), *_preprocessor(cfg)]
    for name in names:
        findings += _dataloader(cfg[f'{name}_dataloader'], f'{name}_dataloader')
        findings += _evaluators(cfg, name)
    known = [split for split in splits if split.classes]
    if known:
        findings += _heads(cfg, known[0])
    if 'train' in names:
        findings += _pooled_to_one_pixel(cfg)
    return findings


def _class_names(splits: Sequence[Split]) -> Iterator[Finding]:
    """Check that every data set has a list of names, and all the same one."""
    for split in splits:
        classes = split.dataset.metainfo.get('classes')
        key = f'{split.key}.metainfo.classes'
        if isinstance(classes, str):
            yield Finding(
                key, f'{classes!r} is one text, whose letters would be the classes', f'write the comma: ({classes!r},)'
            )
        elif split.classes and len(set(split.classes)) < len(split.classes):
            twice = sorted({name for name in split.classes if split.classes.count(name) > 1})
            yield Finding(key, f'{", ".join(twice)} is named twice', 'give every class its own name')
        elif classes is not None and not classes:
            yield Finding(key, 'there is no class', 'name the classes')
    known = [split for split in splits if split.classes]
    for split in known[1:]:
        if split.classes != known[0].classes:
            yield Finding(
                f'{split.key}.metainfo.classes',
                f'{list_text(split.classes)} are not the classes of {known[0].key} in the same order, '
                f'{list_text(known[0].classes)}',
                'give both the same metainfo',
            )


def list_text(names: Sequence[str] | None) -> str:
    """Return the number of names and the first ones."""
    names = names or ()
    more = ', ...' if len(names) > 5 else ''
    return f'{len(names)} ({", ".join(names[:5])}{more})'


def _heads(cfg: Config, split: Split) -> Iterator[Finding]:
    """Check ``num_classes`` of every head, the written and the default ones."""
    classes = split.classes or ()
    if cfg.model.get('language_model'):  # classes are texts there, and num_classes the length of a prompt
        return
    for key, class_, part in model_parts(cfg):
        if any(name in OTHER_CLASSES for name in key.split('.')):
            continue
        found = part.get('num_classes', _default_of(class_, 'num_classes'))
        if not isinstance(found, int) or isinstance(found, bool):
            continue
        if found != len(classes):
            default = '' if 'num_classes' in part else f', the default of {class_.__name__}'
            yield Finding(
                f'{key}.num_classes',
                f'{found}{default}, but {split.key} has {list_text(classes)} classes',
                f'set {key}.num_classes={len(classes)} or {split.key}.metainfo.classes',
            )
        elif found == 1 and cfg.get('default_scope') == 'mmseg':
            yield Finding(
                f'{key}.num_classes',
                'one class leaves a segmentor nothing to tell apart',
                f'name the background as a class of its own: {split.key}.metainfo.classes of two names, '
                f'{key}.num_classes=2',
            )


def model_parts(cfg: Config) -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """Yield key, class and settings of every part of the model whose class is registered."""
    with MODELS.switch_scope_and_registry(cfg.get('default_scope') or 'mmengine') as registry:
        for key, part in dicts_with_key(cfg.model, 'model'):
            class_ = _class_of(registry, part)
            if class_ is not None:
                yield key, class_, part


def _class_of(registry: Registry, part: Mapping[str, Any]) -> type | None:
    type_ = part.get('type')
    found = registry.get(type_) if isinstance(type_, str) else type_
    return found if isinstance(found, type) else None


def _default_of(class_: type, name: str) -> Any:
    """Return the default of an argument of a class, which a base class may define; None if there is none."""
    for base in class_.__mro__:
        init = vars(base).get('__init__')
        if init is None or base is object:
            continue
        parameter = inspect.signature(init).parameters.get(name)
        if parameter is not None:
            return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None


def _preprocessor(cfg: Config) -> Iterator[Finding]:
    """Check that the image statistics fit the images."""
    for key, part in dicts_with_key(cfg.model, 'model'):
        if not key.endswith('data_preprocessor'):
            continue
        mean, std = part.get('mean'), part.get('std')
        if mean is None and std is None:
            continue
        lengths = [len(as_list(value)) for value in (mean, std)]
        channels = (cfg.model.get('backbone') or {}).get('in_channels', 3)
        allowed = {1, channels}
        if lengths[0] != lengths[1] or lengths[0] not in allowed:
            yield Finding(
                f'{key}.mean',
                f'mean has {lengths[0]} values and std {lengths[1]}, but images have {channels} channels',
                f'give {key}.mean and {key}.std {channels} values each',
            )


def _dataloader(dataloader: Mapping[str, Any], key: str) -> Iterator[Finding]:
    """Check settings that torch's dataloader refuses."""
    if not dataloader.get('num_workers') and dataloader.get('persistent_workers'):
        yield Finding(
            f'{key}.persistent_workers',
            'workers cannot persist without workers: num_workers is 0',
            f'set {key}.persistent_workers=False or {key}.num_workers=1',
        )


def _evaluators(cfg: Config, name: str) -> Iterator[Finding]:
    """Check that detectors without masks are not evaluated on masks."""
    if name == 'train' or 'roi_head' not in cfg.model or cfg.model.roi_head.get('mask_head') is not None:
        return
    for evaluator in as_list(cfg.get(f'{name}_evaluator')):
        if 'segm' in as_list(evaluator.get('metric')):
            yield Finding(
                f'{name}_evaluator.metric',
                "'segm' needs masks, and model.roi_head has no mask_head",
                f'set {name}_evaluator.metric=bbox',
            )


def _pooled_to_one_pixel(cfg: Config) -> Iterator[Finding]:
    """Check that batch norms behind a pooling to one pixel see more than one image."""
    if cfg.train_dataloader.get('batch_size') != 1:
        return
    for key, class_, part in model_parts(cfg):
        scales = part.get('pool_scales', _default_of(class_, 'pool_scales'))
        norm = step_name(part.get('norm_cfg') or {})
        if scales and 1 in as_list(scales) and norm in BATCH_NORMS:
            yield Finding(
                'train_dataloader.batch_size',
                f'{key} pools to one pixel, where {norm} cannot train on one image in a batch',
                'set train_dataloader.batch_size=2, or another norm, such as norm_cfg.type=GN with num_groups',
            )
