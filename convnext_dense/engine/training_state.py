"""What a checkpoint has to hold so that a training can go on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convnext_dense.errors import UserError

# Settings that one kind of optimizer has and another has not.
OPTIMIZER_SETTINGS = ('betas', 'momentum', 'alpha', 'rho', 'lambd')


def check_training_state(checkpoint: Any, source: str, schedules: bool = True, weights: bool = True) -> None:
    """Raise UserError unless ``checkpoint`` is one that mmengine's runner saved in a training, complete.

    Args:
        checkpoint: What the file holds.
        source: Names it in the message.
        schedules: Whether the run has schedules of its parameters, such as that of the learning rate.
        weights: Whether the weights have to be where mmengine saves them, under ``state_dict``.
    """
    problem = _problem(checkpoint, schedules, weights)
    if problem:
        raise UserError(
            f'{source} is not a checkpoint of a training that can be resumed: {problem}; give it as load_from, without '
            '--resume, to start from its weights'
        )


def _problem(checkpoint: Any, schedules: bool, weights: bool) -> str | None:
    """Return what is wrong, or None."""
    if not isinstance(checkpoint, Mapping):
        return f'it holds {_kind(checkpoint)} instead of a dict'
    kinds: dict[str, type | tuple[type, ...]] = dict(meta=dict, message_hub=dict, optimizer=dict)
    if schedules:
        kinds['param_schedulers'] = (list, dict)
    if weights:
        kinds['state_dict'] = Mapping
    for name, kind in kinds.items():
        if name not in checkpoint:
            return f'it has no {name}'
        if not isinstance(checkpoint[name], kind):
            return f'its {name} is {_kind(checkpoint[name])}'
    for name in ('epoch', 'iter'):
        value = checkpoint['meta'].get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return f'meta.{name} is {_kind(value) if not isinstance(value, int) else value} instead of a count'
    if weights and not all(isinstance(value, Tensor) for value in checkpoint['state_dict'].values()):
        return 'its state_dict holds more than tensors'
    for name in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(checkpoint['message_hub'].get(name), Mapping):
            return f'message_hub.{name} is {_kind(checkpoint["message_hub"].get(name))}'
    optimizers = [checkpoint['optimizer']]
    if checkpoint['optimizer'] and not {'state', 'param_groups'} & checkpoint['optimizer'].keys():
        optimizers = list(checkpoint['optimizer'].values())  # several optimizers, by name
    for optimizer in optimizers:
        if not isinstance(optimizer, dict):
            return f'its optimizer is {_kind(optimizer)}'
        for name, kind in (('state', dict), ('param_groups', list)):
            if not isinstance(optimizer.get(name), kind):
                return f'optimizer.{name} is {_kind(optimizer.get(name))}'
        for group in optimizer['param_groups']:
            if not isinstance(group, dict) or not isinstance(group.get('params'), list):
                return 'a group of optimizer.param_groups is none'
    return None


def check_optimizer_fits(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any], source: str) -> None:
    """Raise UserError if the state of an optimizer belongs to another kind, or to other groups of parameters."""
    if 'param_groups' not in state_dict:
        return
    ours, theirs = optimizer.param_groups, state_dict['param_groups']
    name = type(optimizer).__name__
    sizes, found = [len(group['params']) for group in ours], [len(group['params']) for group in theirs]
    if sizes != found:
        raise UserError(
            f'the optimizer in {source} has {sum(found)} parameters in {len(found)} groups, that of the config '
            f'{sum(sizes)} in {len(sizes)}: resume with the model, optimizer and layer decay of the first run, or give '
            'the file as load_from, without --resume'
        )
    name = type(optimizer).__name__
    for setting in OPTIMIZER_SETTINGS:
        if (setting in ours[0]) != (setting in theirs[0]):
            have = 'has' if setting in theirs[0] else 'lacks'
            raise UserError(
                f"the optimizer in {source} {have} {setting!r}, so it is of another kind than the config's {name}: "
                'resume with the optimizer of the first run, or give the file as load_from, without --resume'
            )


def check_schedules_fit(checkpoint: Mapping[str, Any], schedules: Any, source: str) -> None:
    """Raise UserError if a checkpoint has another number of schedules than the run, of which some would be lost.

    Args:
        checkpoint: What the file holds.
        schedules: ``runner.param_schedulers``; several optimizers have theirs by name, which are not compared.
        source: Names the file in the message.
    """
    saved = checkpoint.get('param_schedulers')
    if not isinstance(saved, list) or not isinstance(schedules, Sequence) or len(saved) == len(schedules):
        return
    raise UserError(
        f'{source} holds the state of {len(saved)} schedules, param_scheduler of the config has {len(schedules)}: '
        'resume with the schedules of the first run, or give the file as load_from, without --resume'
    )


def _kind(value: Any) -> str:
    return 'missing' if value is None else f'of type {type(value).__name__}'
