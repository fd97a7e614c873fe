"""Find every ConvNeXt in a checkpoint by the names of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convnext_dense.errors import UserError
from convnext_dense.weights.dialects import DIALECTS, STAGED, WRAPPED_MODULES, Dialect

# Of several copies of the weights in one file these come second: `model` is what the official code takes where
# `model_ema` is there too, and `teacher` is what DINO and mmdet's semi-supervised detectors test with.
SECOND_CHOICE = {'model_ema', 'ema_state_dict', 'state_dict_ema', 'ema_model', 'ema', 'student'}

MAX_WRAPPERS = 6
MAX_TENSORS = 100_000


def tensors_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Collect all tensors of a checkpoint.

    Names of nested dicts are joined by dots; the names of wrapping modules (``_orig_mod.``) are taken out.

    Raises:
        UserError: Two tensors have one name, or there are too many entries for a ConvNeXt.
    """
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


def is_second_choice(prefix: str) -> bool:
    """Whether a prefix is that of a copy which is taken only where there is no other."""
    return not SECOND_CHOICE.isdisjoint(prefix.split('.')[:-1])


@dataclass(frozen=True)
class Backbone:
    """A ConvNeXt in a file.

    Attributes:
        prefix: What stands before the names of its tensors, such as ``model.backbone.``.
        dialect: The format of its names.
        names: Their name of each tensor, by ours.
        tensors: The tensors by our names, in our layouts.
        surplus: Names below the prefix that are neither part of a backbone nor known to be something else.
    """

    prefix: str
    dialect: Dialect
    names: dict[str, str]
    tensors: dict[str, Tensor]
    surplus: list[str]


def find_backbones(tensors: Mapping[str, Tensor]) -> list[Backbone]:
    """Find every ConvNeXt in a file: one per prefix, each in the dialect that explains most of its names."""
    best: dict[str, tuple[Dialect, list[tuple[str, str]]]] = {}
    for dialect in DIALECTS:
        for prefix, pairs in _pairs_by_prefix(dialect, tensors).items():
            if _has_blocks(dialect, pairs) and (prefix not in best or len(pairs) > len(best[prefix][1])):
                best[prefix] = dialect, pairs
    return [_backbone(prefix, dialect, pairs, tensors) for prefix, (dialect, pairs) in best.items()]


def _has_blocks(dialect: Dialect, pairs: list[tuple[str, str]]) -> bool:
    if dialect.family == STAGED:
        return any(ours.startswith('stages.') for ours, _ in pairs)
    # Blocks alone are a stage in timm's layout, or a ConvNeXtSharedHead.
    names = {ours for ours, _ in pairs}
    return 'stem.weight' in names and any(re.fullmatch(r'blocks\.\d+\.dwconv\.weight', name) for name in names)


def _pairs_by_prefix(dialect: Dialect, tensors: Mapping[str, Tensor]) -> dict[str, list[tuple[str, str]]]:
    """(our name, their name) of every tensor of a backbone in this dialect, by the prefix of their name."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name in tensors:
        split = dialect.split(name)
        if split:
            prefix, ours = split
            pairs.setdefault(prefix, []).append((ours, name))
    return pairs


def _backbone(prefix: str, dialect: Dialect, pairs: list[tuple[str, str]], tensors: Mapping[str, Tensor]) -> Backbone:
    names: dict[str, str] = {}
    surplus = []
    for ours, theirs in pairs:
        if ours in names:
            surplus.append(theirs)  # a second name for one tensor
        else:
            names[ours] = theirs
    known = {theirs for _, theirs in pairs}
    for name in tensors:
        if name.startswith(prefix) and name not in known and not dialect.is_other(name[len(prefix) :]):
            surplus.append(name)
    values = {ours: our_layout(ours, theirs, tensors[theirs]) for ours, theirs in names.items()}
    return Backbone(prefix, dialect, names, values, surplus)


def our_layout(ours: str, theirs: str, value: Tensor) -> Tensor:
    """Convert a tensor from the file's layout to ours; the layout is inferred from its shape."""
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
    """Choose the ConvNeXt to load.

    Args:
        backbones: At least one, of :func:`find_backbones`.
        prefix: A part of the names before it, such as ``backbone.`` or ``model_ema.``.

    Raises:
        UserError: None has the prefix, or several are equally good.
    """
    listed = ', '.join(repr(backbone.prefix) for backbone in backbones)
    if prefix:
        wanted = f'.{prefix.strip(".")}.'
        backbones = [backbone for backbone in backbones if wanted in '.' + backbone.prefix]
        if not backbones:
            raise UserError(
                f'the file has no ConvNeXt with the prefix {prefix!r}, it has one at {listed}: correct the '
                'prefix or leave it out'
            )
    first = [backbone for backbone in backbones if not is_second_choice(backbone.prefix)] or backbones
    if len(first) > 1:
        raise UserError(
            f'the file has several ConvNeXts, at the prefixes {listed}: choose one by prefix=... in init_cfg'
        )
    return first[0]
