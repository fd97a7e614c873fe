"""Find every ConvNeXt in a checkpoint by the names of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convnext_dense.errors import UserError
from convnext_dense.weights.dialects import DIALECTS, WRAPPED_MODULES, Dialect

# Of several copies of the weights in one file these come second: `model` is what the official code takes where
# `model_ema` is there too, and `teacher` is what DINO and mmdet's semi-supervised detectors test with.
SECOND_CHOICE = {'model_ema', 'ema_state_dict', 'state_dict_ema', 'ema_model', 'ema', 'student'}

MAX_WRAPPERS, MAX_TENSORS = 6, 100_000


def tensors_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a checkpoint; names of nested dicts are joined by dots, wrapped modules left out of them."""
    tensors: dict[str, Tensor] = {}
    visited = 0

    def collect(part: Mapping, prefix: str, depth: int) -> None:
        nonlocal visited
        for key, value in part.items():
            visited += 1
            if visited > MAX_TENSORS:
                raise UserError(f'the checkpoint has more than {MAX_TENSORS} entries: that is no ConvNeXt')
            if isinstance(value, np.ndarray) and value.dtype.kind in 'fi':
                value = torch.from_numpy(value)
            if isinstance(value, Tensor) and isinstance(key, str):
                name = WRAPPED_MODULES.sub('', prefix + key)
                if name in tensors:
                    raise UserError(f'the checkpoint has two tensors {name}: give a file that has one')
                tensors[name] = value
            elif isinstance(value, Mapping) and isinstance(key, str) and depth < MAX_WRAPPERS:
                collect(value, f'{prefix}{key}.', depth + 1)

    if isinstance(checkpoint, Mapping):
        collect(checkpoint, '', 0)
    return tensors


@dataclass
class Backbone:
    """A ConvNeXt in a file: ``tensors`` by our names in our layouts, ``names`` theirs, ``surplus`` what is unknown."""

    prefix: str
    dialect: Dialect
    names: dict[str, str]
    tensors: dict[str, Tensor]
    surplus: list[str]


def find_backbones(tensors: Mapping[str, Tensor]) -> list[Backbone]:
    """Every ConvNeXt in a file, one a prefix, each in the dialect that explains most of its names."""
    best: dict[str, tuple[Dialect, list[tuple[str, str]]]] = {}
    for dialect in DIALECTS:
        rows: dict[str, list[tuple[str, str]]] = {}
        for name in tensors:
            parts = dialect.split(name)
            if parts:
                rows.setdefault(parts[0], []).append((parts[1], name))
        for prefix, found in rows.items():
            if any(ours.startswith('stages.') for ours, _ in found) and len(found) > len(
                best.get(prefix, (None, ()))[1]
            ):
                best[prefix] = dialect, found
    backbones = []
    for prefix, (dialect, found) in best.items():
        names: dict[str, str] = {}
        surplus = []
        for ours, theirs in found:
            if ours in names:
                surplus.append(theirs)
            names.setdefault(ours, theirs)
        used = set(names.values()) | set(surplus)
        surplus += [
            name
            for name in tensors
            if name.startswith(prefix) and name not in used and not dialect.is_other(name[len(prefix) :])
        ]
        values = {ours: our_layout(ours, theirs, tensors[theirs]) for ours, theirs in names.items()}
        backbones.append(Backbone(prefix, dialect, names, values, surplus))
    return backbones


def our_layout(ours: str, theirs: str, value: Tensor) -> Tensor:
    """A tensor of a file in the layout of our tensor of that name, as far as one of them can be seen in its shape."""
    shape = tuple(value.shape)
    side = math.isqrt(shape[0]) if shape else 0
    if theirs.endswith('.kernel') and len(shape) in (2, 3) and side**2 == shape[0]:
        # (kw * kh, C) or (kw * kh, I, O) -> (O, I, kh, kw): in MinkowskiEngine the row runs fastest
        value = value.unsqueeze(1) if len(shape) == 2 else value
        return value.unflatten(0, (side, side)).permute(3, 2, 1, 0)
    if ours.endswith(('.pwconv1.weight', '.pwconv2.weight')) and shape[2:] == (1, 1):
        return value.flatten(1)  # a 1x1 convolution is a Linear: (O, I, 1, 1) -> (O, I)
    if ours.endswith(('.bias', '.gamma', '.beta')) and len(shape) > 1 and sum(size != 1 for size in shape) <= 1:
        return value.flatten()  # (1, 1, 1, C), (1, C) or (C, 1, 1) -> (C,)
    return value


def choose(backbones: list[Backbone], prefix: str | None = None) -> Backbone:
    """The one to load; ``prefix`` is a part of the names before it, such as ``backbone.`` or ``model_ema.``.

    Raises:
        UserError: None has the prefix, or several are equally good.
    """

    def parts(backbone: Backbone) -> list[str]:
        return backbone.prefix.split('.')[:-1]

    listed = ', '.join(repr(backbone.prefix) for backbone in backbones)
    if prefix:
        wanted = f'.{prefix.strip(".")}.'
        backbones = [backbone for backbone in backbones if wanted in '.' + backbone.prefix]
        if not backbones:
            raise UserError(
                f'the file has no ConvNeXt with the prefix {prefix!r}, it has one at {listed}: correct the '
                'prefix or leave it out'
            )
    first = [backbone for backbone in backbones if not SECOND_CHOICE.intersection(parts(backbone))] or backbones
    if len(first) > 1:
        raise UserError(
            f'the file has several ConvNeXts, at the prefixes {listed}: choose one by prefix=... in init_cfg'
        )
    return first[0]
