"""The settings of the optimizer that depend on the backbone, and those of the official recipes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from convnext_dense.archs import ARCHS
from convnext_dense.errors import UserError
from convnext_dense.swap.backbone import SwapRequest
from convnext_dense.swap.config_tree import Change, as_list
from convnext_dense.swap.plan import SitePlan
from convnext_dense.swap.recipe import FALLBACK_ARCH, Recipe, read_recipe

CONSTRUCTOR = 'ConvNeXtLayerDecayConstructor'

LAYER_DECAY_KEYS = ('decay_type', 'num_layers', 'layer_decay_rate')


def optimizer_changes(
    cfg: Config, plans: Sequence[SitePlan], request: SwapRequest, parameter_names: Sequence[str] | None
) -> tuple[list[Change], list[str]]:
    """Return changes that remove what named layers or parameters of the old backbone, and set the recipe; and notes.

    Args:
        cfg: The config with ConvNeXt and the old optimizer.
        plans: Of all sites.
        request: Says whether to set the recipe.
        parameter_names: Of the whole model; None if it could not be built.

    Raises:
        UserError: A recipe is wanted for a config without an optimizer.
    """
    if not isinstance(cfg.get('optim_wrapper'), dict):
        if request.recipe:
            raise UserError('the config has no optim_wrapper, which --recipe would change: leave out --recipe')
        return [], []
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    notes = _remove_layer_decay(wrapper, plans)
    _remove_old_custom_keys(wrapper, plans, parameter_names)
    changes = []
    if request.recipe:
        named_archs = [plan.arch for plan in plans if plan.arch in list(ARCHS)]
        recipe = read_recipe(named_archs[0] if named_archs else FALLBACK_ARCH, request.segmentation)
        scale_cfg = cfg.get('auto_scale_lr') or {}
        batch_size = scale_cfg.get('base_batch_size', recipe.batch_size)
        learning_rate = recipe.optimizer['lr'] * batch_size / recipe.batch_size
        old_learning_rate = (wrapper.get('optimizer') or {}).get('lr')
        _set_recipe(wrapper, recipe, learning_rate, _custom_keys_of_others(wrapper, plans, parameter_names or ()))
        if old_learning_rate:
            changes += _scheduler_changes(cfg, learning_rate / old_learning_rate)
        note = f'learning rate {learning_rate:g} for {batch_size} images an iteration: scale it to yours'
        notes.append(f'{note} with --auto-scale-lr' if 'base_batch_size' in scale_cfg else note)
    return [Change(('optim_wrapper',), wrapper), *changes], notes


def _remove_layer_decay(wrapper: ConfigDict, plans: Sequence[SitePlan]) -> list[str]:
    """Remove layer decay that was made for the old backbone, or hand that of a ConvNeXt to our constructor."""
    paramwise_cfg = wrapper.get('paramwise_cfg') or {}
    has_layer_decay = any(key in paramwise_cfg for key in LAYER_DECAY_KEYS)
    if not has_layer_decay or wrapper.get('constructor') == CONSTRUCTOR:
        return []
    if all(plan.was_convnext for plan in plans) and 'decay_rate' in paramwise_cfg:
        wrapper.constructor = CONSTRUCTOR
        # Ours counts the layers itself.
        wrapper.paramwise_cfg = {key: value for key, value in paramwise_cfg.items() if key != 'num_layers'}
        return []
    note = (
        f'{wrapper.get("constructor")} counted layers of the old backbone: removed; '
        '--recipe sets layer decay for ConvNeXt'
    )
    wrapper.pop('constructor', None)
    wrapper.pop('paramwise_cfg', None)
    return [note]


def _remove_old_custom_keys(
    wrapper: ConfigDict, plans: Sequence[SitePlan], parameter_names: Sequence[str] | None
) -> None:
    """Remove custom keys that match no parameter any more.

    Where the names of the whole model are not known, remove those that matched the old backbone and do not match the
    new one.
    """
    custom_keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys', {})
    old_names = [name for plan in plans for name in plan.old_parameters]
    new_names = [name for plan in plans for name in plan.new_parameters]
    for key in list(custom_keys):
        if parameter_names is not None:
            is_gone = not _matches(key, parameter_names)
        else:
            is_gone = _matches(key, old_names) and not _matches(key, new_names)
        if is_gone:
            del custom_keys[key]


def _custom_keys_of_others(
    wrapper: ConfigDict, plans: Sequence[SitePlan], parameter_names: Sequence[str]
) -> dict[str, dict]:
    """Return the custom keys that match parameters of the model, but none of a swapped backbone."""
    places = tuple(f'{plan.site.place}.' for plan in plans)
    names_in_backbones = [name for name in parameter_names if name.startswith(places)]
    kept = {}
    for key, value in (wrapper.get('paramwise_cfg') or {}).get('custom_keys', {}).items():
        if _matches(key, parameter_names) and not _matches(key, names_in_backbones):
            kept[key] = value
    return kept


def _set_recipe(wrapper: ConfigDict, recipe: Recipe, learning_rate: float, custom_keys: dict[str, dict]) -> None:
    wrapper.constructor = CONSTRUCTOR
    wrapper.paramwise_cfg = recipe.paramwise_cfg
    if custom_keys:
        wrapper.paramwise_cfg.custom_keys = custom_keys
    wrapper.optimizer = dict(recipe.optimizer, lr=learning_rate)
    wrapper.type = recipe.wrapper_type
    wrapper.loss_scale = 'dynamic'  # mmengine's default, which the recipes use; the old config may fix a scale


def _scheduler_changes(cfg: Config, factor: float) -> list[Change]:
    """Return changes that scale absolute last learning rates: 1e-4 of SGD would be the whole rate of AdamW."""
    schedulers = cfg.get('param_scheduler') or []
    changes = []
    for number, scheduler in enumerate(as_list(schedulers)):
        if scheduler.get('eta_min'):
            path = ('param_scheduler', number) if isinstance(schedulers, (list, tuple)) else ('param_scheduler',)
            changes.append(Change((*path, 'eta_min'), scheduler.eta_min * factor))
    return changes


def _matches(key: str, names: Sequence[str]) -> bool:
    """Return whether a custom key is part of any parameter name."""
    return any(key in name for name in names)
