"""Settings of a run that mmengine or torch refuse late or without saying which: mended, or refused with the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from convnext_dense.errors import UserError
from convnext_dense.models.loading import PretrainedModule
from convnext_dense.run.options import nested_dicts

NEEDS_WORKERS = ('persistent_workers', 'prefetch_factor')
NUMBERS = ('lr', 'weight_decay', 'momentum', 'eps', 'alpha', 'lr_decay', 'dampening')
# What torch says, and what helps.
TORCH_ERRORS = {
    'Expected more than 1 value per channel when training': (
        'a BatchNorm got a single value per channel, as with one image in a batch and a pooled feature: set '
        'train_dataloader.batch_size=2 or more, or train_dataloader.drop_last=True where the last batch has one image'
    ),
    'Expected to have finished reduction in the prior iteration': (
        'parameters of the model got no gradient, which several processes cannot have: set '
        'find_unused_parameters=True, or leave out of model.backbone.out_indices what no neck and head takes'
    ),
}


def settle(cfg: Config, launcher: str) -> list[str]:
    """Mend what has one meaning, and refuse what cannot run.

    Args:
        cfg: The config of a run, changed in place.
        launcher: How several processes were started; 'none' for one process.

    Returns:
        A line for each change.

    Raises:
        UserError: A setting of the optimizer is no number, the data_preprocessor is made for another number of
            channels than the backbone, or a feature that nothing takes would stop several processes.
    """
    lines = [*_read_numbers(cfg), *_leave_workers_out(cfg)]
    _check_channels(cfg)
    if launcher != 'none' and not cfg.get('find_unused_parameters'):
        _check_unused_features(cfg)
    return lines


def _read_numbers(cfg: Config) -> list[str]:
    """Take numbers that are written as text, as YAML reads 1e-4, for what they are."""
    lines = []
    for part in nested_dicts(cfg.get('optim_wrapper')):
        for key in NUMBERS:
            value = part.get(key)
            if not isinstance(value, str):
                continue
            try:
                part[key] = float(value)
            except ValueError:
                raise UserError(
                    f'optim_wrapper: {key}={value!r} is not a number: write one, such as {key}=1e-4'
                ) from None
            lines.append(f'optim_wrapper: {key} is the text {value!r} in the config, taken as the number {part[key]:g}')
    return lines


def _leave_workers_out(cfg: Config) -> list[str]:
    """Leave out of dataloaders without workers what torch refuses there."""
    lines = []
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if not isinstance(loader, dict) or loader.get('num_workers', 0):
            continue
        for key in NEEDS_WORKERS:
            if loader.get(key):
                del loader[key]
                lines.append(f'{name}: num_workers is 0, so {key} is left out')
    return lines


def _backbone(cfg: Config) -> Mapping[str, Any] | None:
    """Return the config of the model's backbone if it is one of ours."""
    backbone = (cfg.get('model') or {}).get('backbone')
    if not isinstance(backbone, Mapping):
        return None
    kind: Any = backbone.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    return backbone if isinstance(kind, type) and issubclass(kind, PretrainedModule) else None


def _check_channels(cfg: Config) -> None:
    backbone = _backbone(cfg)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if backbone is None or not preprocessor.get('mean'):
        return
    channels = backbone.get('in_channels', backbone.get('in_chans', 3))
    mean = list(preprocessor['mean'])
    takes_any_number = 'Seg' in str(preprocessor.get('type'))  # mmdet's and mmengine's take 1 or 3
    if len(mean) in (1, channels) and (takes_any_number or len(mean) in (1, 3)):
        return
    if takes_any_number:
        advice = f'give mean and std of {channels} values'
    else:
        advice = 'set its mean=None and std=None, and normalise by a step of the pipelines'
    raise UserError(
        f'the data_preprocessor has a mean of {len(mean)} values, the images of model.backbone have {channels} '
        f'channels (in_channels): {advice}, or correct in_channels'
    )


def _check_unused_features(cfg: Config) -> None:
    """Refuse an FPN behind our backbone that ignores its first features: their norms get no gradient."""
    backbone = _backbone(cfg)
    neck = cfg.model.get('neck')
    if backbone is None or not isinstance(neck, Mapping) or not isinstance(neck.get('in_channels'), (list, tuple)):
        return
    first = neck.get('start_level') or 0
    if first > 0:
        stages = list(backbone.get('out_indices', range(len(neck['in_channels']))))
        raise UserError(
            f'the neck ignores the first {first} features (start_level={first}), whose norms get no gradient, which '
            f'several processes cannot have: set model.backbone.out_indices={stages[first:]}, model.neck.in_channels='
            f'{list(neck["in_channels"])[first:]} and model.neck.start_level=0, or find_unused_parameters=True'
        )


@contextmanager
def torch_errors() -> Iterator[None]:
    """Turn errors of torch that settings cause into a sentence with the settings.

    Raises:
        UserError: Something inside has raised one of :data:`TORCH_ERRORS`.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        for text, advice in TORCH_ERRORS.items():
            if text in str(error):
                raise UserError(advice) from error
        raise
