"""The other settings that a backbone decides: preprocessing, weights of the old model, imports."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from convnext_dense.swap.backbone import STAGE_STRIDES, is_pretrained
from convnext_dense.swap.config_tree import (
    REMOVED,
    Change,
    ConfigPath,
    custom_imports,
    dotted,
    nested_dicts,
    types_of_package,
)
from convnext_dense.swap.plan import SitePlan
from convnext_dense.swap.probe import CLASSIFIERS
from convnext_dense.weights.known import IMAGENET, Statistics
from convnext_dense.weights.sources import facts_of

LARGEST_STRIDE = STAGE_STRIDES[-1]


def input_statistics(plans: Sequence[SitePlan], weights: str | None) -> Statistics:
    """Return the mean and std of the inputs that weights were trained with; ImageNet's where they are not known.

    Args:
        plans: Of all sites.
        weights: For the backbone; None if none were given, and those of the config may stay.
    """
    sources = [weights] if weights else [plan.kept_weights for plan in plans if plan.kept_weights]
    return next((known.statistics for known in map(facts_of, sources) if known.statistics), IMAGENET)


def preprocessing_changes(cfg: Config, statistics: Statistics) -> tuple[list[Change], list[str]]:
    """Return changes to RGB with the mean and std of the weights, and to sides divisible by 32; and notes.

    Args:
        cfg: The config before.
        statistics: Of the inputs.
    """
    changes: list[Change] = []
    notes: list[str] = []
    for path, preprocessor in _preprocessors(cfg):
        if 'data_preprocessor' in preprocessor:  # a wrapper around another one
            continue
        old_mean = preprocessor.get('mean')
        if old_mean is not None and len(old_mean) != 3:
            notes.append(
                f'the mean of {len(old_mean)} channels in data_preprocessor stays: ConvNeXt was trained with RGB'
            )
            continue
        rgb_key = 'to_rgb' if 'to_rgb' in preprocessor else 'bgr_to_rgb'
        mean, std = list(statistics.mean), list(statistics.std)
        values = {'mean': mean, 'std': std, rgb_key: True, 'rgb_to_bgr': REMOVED}
        type_name = preprocessor.get('type', '')
        divisor = preprocessor.get('pad_size_divisor', 1)
        # mmseg resizes or pads to one size instead, and images of re-identification have one.
        if 'Seg' not in type_name and 'ReID' not in type_name and divisor % LARGEST_STRIDE:
            values['pad_size_divisor'] = LARGEST_STRIDE if LARGEST_STRIDE % divisor == 0 else divisor * LARGEST_STRIDE
        changes += [Change((*path, key), value) for key, value in values.items()]
        if old_mean is not None and list(old_mean) != mean:
            changes += _normalization_changes(cfg, old_mean, statistics)
    return changes, notes


def old_weights_changes(cfg: Config, plans: Sequence[SitePlan], weights: str | None) -> tuple[list[Change], list[str]]:
    """Return changes that remove weights of the old model, unless they fit; and notes.

    Args:
        cfg: The config before.
        plans: Of all sites.
        weights: For the backbone; None if none were given.
    """
    if all(plan.keeps_arch for plan in plans):
        return [], []
    changes: list[Change] = []
    notes: list[str] = []
    if cfg.get('load_from'):
        notes.append(f'load_from={cfg.load_from} was of the old model: removed')
        changes.append(Change(('load_from',), None))
    backbone_paths = [plan.site.path for plan in plans]
    for path, part in nested_dicts(cfg.model):
        if any(path[: len(backbone)] == backbone for backbone in backbone_paths):
            continue
        is_around_a_backbone = any(backbone[: len(path)] == path for backbone in backbone_paths)
        if is_around_a_backbone and part.get('pretrained'):
            changes.append(Change(('model', *path, 'pretrained'), None))
        if is_around_a_backbone and is_pretrained(part.get('init_cfg')):
            init_cfg_path = ('model', *path, 'init_cfg')
            notes.append(f'{dotted(init_cfg_path)} loads weights of the old model: removed')
            changes.append(Change(init_cfg_path, None))
        if part.get('teacher_ckpt') and 'teacher_backbone' in part:
            notes.append(
                'teacher_ckpt was of the old teacher: removed; give one with ConvNeXt, or this '
                'trains with a random teacher'
            )
            changes.append(Change(('model', *path, 'teacher_ckpt'), None))
    if not weights and not any(plan.keeps_weights for plan in plans):
        notes.append(
            'no weights were given: the backbone starts at random; --weights convnext_tiny_1k_224 '
            '(a name, path or URL) or model.backbone.init_cfg change that'
        )
    return changes, notes


def import_changes(cfg: Config) -> list[Change]:
    """Return the change of ``custom_imports``: ours is added, and mmpretrain's goes if nothing of it is left.

    Args:
        cfg: The config with ConvNeXt.
    """
    imports = []
    for name in custom_imports(cfg):
        package = name.split('.')[0]
        if package not in CLASSIFIERS or types_of_package(cfg._cfg_dict, package):
            imports.append(name)
    if 'convnext_dense' not in imports:
        imports.append('convnext_dense')
    may_fail = (cfg.get('custom_imports') or {}).get('allow_failed_imports', False)
    return [Change(('custom_imports',), dict(imports=imports, allow_failed_imports=may_fail))]


def _preprocessors(cfg: Config) -> list[tuple[ConfigPath, ConfigDict]]:
    """Return every ``data_preprocessor`` with its path: that of the config, then those in the model."""
    found: list[tuple[ConfigPath, ConfigDict]] = []
    if isinstance(cfg.get('data_preprocessor'), dict):
        found.append((('data_preprocessor',), cfg.data_preprocessor))
    for path, part in nested_dicts(cfg.model):
        if part.get('data_preprocessor'):
            found.append((('model', *path, 'data_preprocessor'), part.data_preprocessor))
    return found


def _normalization_changes(cfg: Config, old_mean: Sequence[float], statistics: Statistics) -> list[Change]:
    """Return the changes of other normalizations by the old mean, such as ``img_norm_cfg`` of a tracker.

    Steps of pipelines are left as they are: ``Expand`` goes on to fill borders with the mean that it names.
    """
    changes = []
    for path, part in nested_dicts(cfg._cfg_dict):
        is_value_of_a_key = bool(path) and isinstance(path[-1], str)
        if not is_value_of_a_key or 'to_rgb' not in part or 'mean' not in part:
            continue
        if sorted(part['mean']) == sorted(old_mean):
            changes.append(Change((*path, 'mean'), list(statistics.mean)))
            changes.append(Change((*path, 'to_rgb'), True))
            if 'std' in part:
                changes.append(Change((*path, 'std'), list(statistics.std)))
    return changes
