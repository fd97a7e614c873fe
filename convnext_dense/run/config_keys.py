"""Which keys ``--cfg-options`` may change or add: mmengine ignores a misspelt one."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    FlexibleRunner,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
    set_random_seed,
)
from torch import nn
from torch.utils.data import DataLoader

from convnext_dense.errors import UserError
from convnext_dense.toolkits import check_toolkit

# Keys of a config that are no arguments of the runner, and who reads them.
TOP_LEVEL = (
    *('activation_checkpointing', 'compile', 'efficient_conv_bn_eval', 'find_unused_parameters'),  # the runner
    *('model_wrapper_cfg', 'runner_type', 'sync_bn'),
    *('backend_args', 'custom_imports', 'data_root', 'fp16', 'tta_model', 'tta_pipeline'),  # the toolkits' tools
    'torchvision_roi_align',  # convnext_dense.run.machine
)
# Keys of dicts that mmengine reads itself.
WITHOUT_TYPE = dict(
    auto_scale_lr=('enable', 'base_batch_size'),
    env_cfg=('cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit'),
)
# Keys that mmengine takes out of a dict before it builds what ``type`` names.
ANYWHERE = ('type', '_scope_', '_delete_', 'init_cfg', 'priority', 'data_preprocessor', 'requires_grad')
DATALOADER = ('dataset', 'sampler', 'batch_sampler', 'worker_init_fn', 'num_batch_per_epoch')
NEAR = 0.7  # similarity of two keys of which one is taken for the misspelt other


def check_keys(cfg: Config, keys: Sequence[str]) -> list[str]:
    """Check that every key is known: something reads it.

    A key is known if it is in the config, is an argument of the runner, or is a parameter of what ``type`` builds
    there. In a dict without ``type`` only a key that looks like another one of it is refused.

    Args:
        cfg: The config before the changes.
        keys: As ``--cfg-options`` writes them, such as ``model.backbone.arch``.

    Returns:
        A line for each key that is new in a place where nothing says which keys are read.

    Raises:
        UserError: A key is not known; says the nearest one that is.
    """
    lines = []
    for key in keys:
        line = _check_key(cfg, key, keys)
        if line:
            lines.append(line)
    return lines


def _check_key(cfg: Config, key: str, keys: Sequence[str]) -> str | None:
    value: Any = cfg._cfg_dict
    names = key.split('.')
    for depth, name in enumerate(names):
        place = '.'.join(names[:depth])
        if isinstance(value, (list, tuple)):
            if not name.isdigit() or int(name) >= len(value):
                raise UserError(
                    f'--cfg-options {key}: {place} is a list of {len(value)}, {name} is not one of its positions: '
                    f'give 0 to {len(value) - 1}'
                )
            value = value[int(name)]
            continue
        if not isinstance(value, Mapping):
            if value is None:
                return f'--cfg-options {key}: {place} is None in the config, nothing says which keys are read there'
            raise UserError(
                f'--cfg-options {key}: {place} is {value!r} in the config, which has no keys: give a value for {place} '
                'as a whole'
            )
        if name in value:
            value = value[name]
            continue
        if f'{place}.type' in keys or f'{place}._delete_' in keys:  # of another class, which is known later
            return None
        known, is_complete = _known_keys(value, names[:depth], cfg)
        if name in known and depth:
            return None
        if name in known:
            value = {}  # an argument of the runner, with keys of its own
            continue
        near = difflib.get_close_matches(name, sorted({*map(str, value), *known}), n=1, cutoff=NEAR)
        if not is_complete and not near:
            where = f'in {place}' if place else 'in the config'
            return f'--cfg-options {key}: {name} is new {where}, where nothing says which keys are read'
        nearest = difflib.get_close_matches(name, sorted({*map(str, value), *known}), n=1, cutoff=0.0)
        suggestion = '.'.join([*names[:depth], *nearest])
        builds = f' of {_name(value["type"])}' if 'type' in value else ''
        raise UserError(
            f'--cfg-options {key}: {name} is neither in the config nor an argument{builds}, so nothing would read it: '
            f'the nearest that is known is {suggestion}; +{key}=... sets it all the same'
        )
    return None


def _known_keys(part: Mapping, path: Sequence[str], cfg: Config) -> tuple[set[str], bool]:
    """Return the keys that are read in a dict of the config, and whether these are all."""
    if not path:
        return {*_parameters_of(Runner), *_parameters_of(FlexibleRunner), *TOP_LEVEL}, True
    last = path[-1]
    kinds: list[Any] = []
    if 'type' in part:
        kinds = list(_classes_of(part['type'], cfg))
    elif last.endswith('_dataloader') and len(path) == 1:
        return {*_parameters_of(DataLoader), *DATALOADER}, True
    elif last in WITHOUT_TYPE and len(path) == 1:
        return set(WITHOUT_TYPE[last]), True
    elif last == 'sampler':
        kinds = [DefaultSampler]
    elif last == 'train_cfg' and len(path) == 1:
        kinds = [EpochBasedTrainLoop, IterBasedTrainLoop]
    elif len(path) == 1:
        by_name: dict[str, Any] = dict(
            val_cfg=ValLoop,
            test_cfg=TestLoop,
            optim_wrapper=OptimWrapper,
            log_processor=LogProcessor,
            randomness=set_random_seed,
        )
        kinds = [by_name[last]] if last in by_name else []
    if not kinds:
        return set(), False
    known, is_complete = set(ANYWHERE), True
    for kind in kinds:
        named, all_named = parameters(kind)
        known |= named
        is_complete = is_complete and all_named
    if last == 'optim_wrapper':
        known |= {'constructor', 'paramwise_cfg', 'optimizer', 'clip_grad', 'accumulative_counts', 'dtype'}
    if last == 'train_cfg':
        known |= {'by_epoch', 'max_epochs', 'max_iters'}
    if last == 'test_cfg':
        known.add('fp16')
    if 'param_scheduler' in path:
        known.add('convert_to_iter_based')
    return known, is_complete


def _classes_of(kind: Any, cfg: Config) -> Iterator[Any]:
    """Yield what the registries have under the ``type`` of a dict; a name may be in several."""
    if not isinstance(kind, str):
        yield kind
        return
    scope = cfg.get('default_scope') or 'mmengine'
    check_toolkit(scope)  # registers its classes
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            try:
                found = registry.children.get(scope, registry).get(kind)  # looks into its parents too
            except Exception:  # a name with the scope of a package that is not there
                continue
            if found is not None:
                yield found


def parameters(kind: Any) -> tuple[set[str], bool]:
    """Return the names of the arguments that a class or function takes, and whether these are all.

    ``**kwargs`` that are passed to the base class stand for the arguments of that class.
    """
    if not inspect.isclass(kind):
        return _own_parameters(kind)
    known: set[str] = set()
    for cls in kind.__mro__:
        if cls in (object, nn.Module):  # they refuse what is left over
            return known, True
        if '__init__' not in vars(cls):
            continue
        named, is_closed = _own_parameters(vars(cls)['__init__'])
        known |= named
        if is_closed:
            return known, True
        if not _passes_keywords_on(cls):
            return known, False
    return known, False


def _parameters_of(kind: Any) -> set[str]:
    return parameters(kind)[0]


def _own_parameters(function: Any) -> tuple[set[str], bool]:
    """Return the names in a signature, with those read as ``kwargs.get('name')``, and whether it takes no others."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return set(), False
    known = {*signature.parameters, *getattr(function, 'aliases', ())} - {'self'}
    keywords = [part.name for part in signature.parameters.values() if part.kind is part.VAR_KEYWORD]
    if not keywords:
        return known, True
    known |= set(re.findall(rf'\b{keywords[0]}\.(?:pop|get|setdefault)\(\s*[\'"](\w+)', _source(function)))
    return known - set(keywords), False


def _passes_keywords_on(cls: type) -> bool:
    """Return whether a constructor passes its ``**kwargs`` to that of its base class."""
    return bool(re.search(r'super\([^)]*\)\.__init__\([^)]*\*\*', _source(vars(cls)['__init__'])))


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ''


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
