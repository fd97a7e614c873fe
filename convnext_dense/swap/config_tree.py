"""Walk through nested config values, and copy a config with some of them changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from mmengine.config import Config, ConfigDict

ConfigPath = tuple[str | int, ...]  # keys of dicts and positions in lists, from the outside to the inside

REMOVED: Final = object()  # value of a Change that removes its key

AnyConfig = TypeVar('AnyConfig', Config, ConfigDict)


@dataclass(frozen=True)
class Change:
    """One value of a config to set.

    Attributes:
        path: Where it is; the last key may be new.
        value: What to set; ``REMOVED`` removes the key.
    """

    path: ConfigPath
    value: Any

    def below(self, path: ConfigPath) -> Change:
        """Return the same change for a config in which the one of this change is at ``path``."""
        return Change((*path, *self.path), self.value)


def with_changes(config: AnyConfig, changes: Iterable[Change]) -> AnyConfig:
    """Return a copy of a config in which the changes were made in their order.

    Args:
        config: Left as it is.
        changes: Their paths begin at ``config``.
    """
    changed = copy.deepcopy(config)
    for change in changes:
        *outer_keys, last_key = change.path
        owner: Any = changed
        for key in outer_keys:
            owner = owner[key]
        if change.value is REMOVED:
            owner.pop(last_key, None)
        else:
            owner[last_key] = copy.deepcopy(change.value)
    return changed


def nested_dicts(value: Any, path: ConfigPath = ()) -> Iterator[tuple[ConfigPath, ConfigDict]]:
    """Yield every dict at every depth with its path, the outer ones first."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        yield path, value
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield from nested_dicts(item, (*path, key))


def dotted(path: ConfigPath) -> str:
    """Return a path as text, such as ``'detector.backbone'``."""
    return '.'.join(map(str, path))


def as_list(value: Any) -> list:
    """Return the items of a list or tuple, or a list of the one value."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def types_of_package(config: Any, package: str) -> set[str]:
    """Return the values of ``type`` that name a package, such as ``'mmpretrain.ResNet'``."""
    types = set()
    for _, part in nested_dicts(config):
        type_name = part.get('type')
        if isinstance(type_name, str) and type_name.startswith(f'{package}.'):
            types.add(type_name)
    return types


def custom_imports(cfg: Config) -> list[str]:
    """Return the modules that a config imports."""
    return as_list((cfg.get('custom_imports') or {}).get('imports', []))


def arguments_of(config: ConfigDict) -> dict[str, Any]:
    """Return the arguments of the class that a config builds."""
    return {key: value for key, value in config.items() if key not in ('type', '_scope_')}
