"""Find the backbones of a model config, and what may take the features of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.config import ConfigDict

from convnext_dense.errors import UserError
from convnext_dense.swap.config_tree import ConfigPath, as_list, dotted

# Dicts next to a backbone that take no features.
NO_CONSUMERS = ('data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg', 'language_model', 'pretrained')


@dataclass(frozen=True)
class Head:
    """What may take the features of a backbone or its neck.

    Attributes:
        name: Key of the model, such as ``'roi_head'``.
        number: Position in the list under that key; 0 if it is no list.
        path: From the model to its config.
        config: Its config.
    """

    name: str
    number: int
    path: ConfigPath
    config: ConfigDict


@dataclass(frozen=True)
class Site:
    """One backbone of a model with its consumers, which are configured next to it.

    Attributes:
        path: From the model to the config of the backbone.
        backbone: Its config.
        neck_path: From the model to the neck, whether there is one or not.
        neck: Config of the neck, or of several in a row; None if there is none.
        heads: Everything else that may take features, in the order of the config.
    """

    path: ConfigPath
    backbone: ConfigDict
    neck_path: ConfigPath
    neck: ConfigDict | list | tuple | None
    heads: tuple[Head, ...]

    @property
    def place(self) -> str:
        """The path as text, which is the name of the module in the model: ``'detector.backbone'``."""
        return dotted(self.path)

    @property
    def neck_type(self) -> str:
        """Types of all necks."""
        return ' + '.join(part.type for part in as_list(self.neck))


def find_sites(model: ConfigDict) -> list[Site]:
    """Find every backbone of a model.

    A backbone is a dict with a ``type`` under a key that ends with ``backbone``. A backbone inside of another one
    belongs to that one.

    Raises:
        UserError: There is none, or one is inside a neck.
    """
    sites = []
    for path, owner in _backbones(model):
        if any(str(key).endswith('neck') for key in path):
            raise UserError(
                f'{dotted(path)} sits inside a neck, which feeds it a second input: ConvNeXt takes only an image'
            )
        key = str(path[-1])
        prefix = key.removesuffix('backbone')  # 'teacher_' of 'teacher_backbone'
        neck_key = f'{prefix}neck'
        sites.append(
            Site(
                path=path,
                backbone=owner[key],
                neck_path=(*path[:-1], neck_key),
                neck=owner.get(neck_key) or None,
                heads=tuple(_heads(owner, path[:-1], prefix)),
            )
        )
    if not sites:
        raise UserError(f'the model {model.type} has no backbone= that could be exchanged')
    return sites


def _backbones(value: Any, path: ConfigPath = ()) -> Iterator[tuple[ConfigPath, ConfigDict]]:
    """Yield the path of every backbone with the dict around it."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key.endswith('backbone') and isinstance(item, dict) and 'type' in item:
                yield (*path, key), value
            else:
                yield from _backbones(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _backbones(item, (*path, position))


def _heads(owner: ConfigDict, owner_path: ConfigPath, prefix: str) -> Iterator[Head]:
    """Yield what is next to the backbone ``owner[prefix + 'backbone']`` and may take its features."""
    for name, value in owner.items():
        belongs_to_another = not name.startswith(prefix) or (not prefix and name.startswith('teacher_'))
        if belongs_to_another or name in NO_CONSUMERS or name.endswith(('backbone', 'neck')):
            continue
        if isinstance(value, dict):
            yield Head(name, 0, (*owner_path, name), value)
        elif isinstance(value, (list, tuple)):
            for number, part in enumerate(value):
                if isinstance(part, dict):
                    yield Head(name, number, (*owner_path, name, number), part)
