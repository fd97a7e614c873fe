"""Fit the tensors of a file to a ConvNeXt: completely, or with an error that says what does not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from convnext_dense.archs import ARCHS
from convnext_dense.errors import UserError
from convnext_dense.weights.dialects import DEFAULT_KERNEL_SIZE, WRAPPED_MODULES
from convnext_dense.weights.find import Backbone, choose, find_backbones, tensors_of


def fit_state_dict(
    model: nn.Module, found: Mapping[str, Any], prefix: str | None = None, note: str = '', place: str = ''
) -> dict[str, Tensor]:
    """The state dict of ``model`` out of a checkpoint, as :func:`match`; logs its line with ``note`` behind it."""
    state, line = match(model, found, prefix, place)
    print_log('; '.join(filter(None, (line, note))), logger='current')
    return state


def match(
    model: nn.Module, found: Mapping[str, Any], prefix: str | None = None, place: str = ''
) -> tuple[dict[str, Tensor], str]:
    """The state dict of ``model`` out of a checkpoint in any dialect.

    Args:
        model: The module to fill; its tensors say what is wanted.
        found: A state dict, or a whole checkpoint around one.
        prefix: Which ConvNeXt, where the checkpoint has several; see :func:`choose`.
        place: Where the model is in the model around it, for messages.

    Returns:
        One tensor for each of ``model``, where output norms that ``found`` lacks keep their present values; and a line
        that says what was found.

    Raises:
        UserError: A tensor of the model other than the output norms has no match, a tensor of the file has no use, or a
            shape or type differs.
    """
    tensors = tensors_of(found)
    backbones = find_backbones(tensors)
    if not backbones:
        names = list(tensors) or (list(found) if isinstance(found, Mapping) else [type(found).__name__])
        raise UserError(
            f'this load offers the ConvNeXt{f" at {place!r}" if place else ""} none of its tensors: '
            + (
                f'it holds no ConvNeXt in a known layout, its first names are {names[:3]}; '
                if names
                else f'no name in it starts with {place!r}; '
            )
            + "give the file of a ConvNeXt as init_cfg, or load through mmengine's runner with "
            "custom_hooks=[dict(type='ConvNeXtLoadHook')], which unwraps whole files"
        )
    chosen = choose(backbones, prefix)
    given = chosen.tensors
    wanted = {WRAPPED_MODULES.sub('', name): param.detach() for name, param in model.named_parameters()}
    left_out = [name for name in given if name not in wanted and _is_left_out(model, name)]
    given = {name: value for name, value in given.items() if name not in left_out}
    new = [
        name
        for name in wanted
        if re.match(r'norm\d\.', name)
        and not any(f'{name.split(".")[0]}.{part}' in given for part in ('weight', 'bias'))
    ]
    missing = [name for name in wanted if name not in given and name not in new]
    unknown = chosen.surplus + [chosen.names[name] for name in given if name not in wanted]
    given, changes = _adapted(model, given)
    differing = []
    for name in (name for name in wanted if name in given):
        value, shape = given[name], tuple(wanted[name].shape)
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            differing.append(f'{chosen.names[name]} of type {value.dtype} for {wanted[name].dtype}')
        elif tuple(value.shape) != shape:
            differing.append(f'{chosen.names[name]} {tuple(value.shape)} for {shape}')
    if missing or unknown or differing:
        raise UserError(
            'these weights do not fit the ConvNeXt'
            + (f' at {place!r}' if place else '')
            + ''.join(
                f'; {len(names)} {what}: {", ".join(names[:3])}{", ..." if len(names) > 3 else ""}'
                for what, names in (
                    ('tensors of the model are not in the file', missing),
                    ('tensors of the file are not in the model', unknown),
                    ('shapes differ', differing),
                )
                if names
            )
            + _advice(model, chosen)
        )

    line = _summary(model, chosen, given, new, left_out, changes, backbones)
    return {**given, **{name: wanted[name] for name in new}}, line


def _adapted(model: nn.Module, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """``given`` for a model that was asked for with other input channels or kernels, and what was done."""
    changes = []
    stem = 'downsample_layers.0.0.weight'
    wanted, value = model.get_parameter(stem), given.get(stem)
    if value is not None and value.ndim == 4 and value.shape[1] == 3 != wanted.shape[1]:
        channels = wanted.shape[1]
        if channels == 1:
            adapted = value.float().sum(1, keepdim=True)
        else:  # red, green, blue, red, ... at the strength of three channels
            adapted = value.float().repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels] * (3 / channels)
        given = {**given, stem: adapted.to(value.dtype)}
        changes.append(f'the stem is adapted from 3 to {channels} input channels')
    side = model.kernel_size
    kernels = {
        name: value
        for name, value in given.items()
        if name.endswith('.dwconv.weight') and value.ndim == 4 and value.shape[2] == value.shape[3] != side
    }
    if side != DEFAULT_KERNEL_SIZE and kernels:  # asked for explicitly
        before = next(iter(kernels.values())).shape[2]
        given = {**given, **{name: _resized(value, side) for name, value in kernels.items()}}
        changes.append(f'depthwise kernels are interpolated from {before}x{before} to {side}x{side}')
    return given, changes


def _resized(kernel: Tensor, side: int) -> Tensor:
    """(C, 1, k, k) -> (C, 1, side, side) of about the same sum."""
    resized = F.interpolate(kernel.float(), size=(side, side), mode='bicubic', align_corners=False)
    return (resized * (kernel.shape[2] / side) ** 2).to(kernel.dtype)


def _is_left_out(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to a stage or an output that ``out_indices`` leaves out."""
    norm = re.match(r'norm(\d)\.', name)
    if norm:
        return int(norm[1]) not in model.out_indices
    stage = re.match(r'(?:stages|downsample_layers)\.(\d)\.', name)
    return bool(stage) and int(stage[1]) >= len(model.stages)


def _summary(
    model: nn.Module,
    chosen: Backbone,
    given: Mapping[str, Tensor],
    new: list[str],
    left_out: Iterable[str],
    changes: Iterable[str],
    backbones: Iterable[Backbone],
) -> str:
    norms = sorted({name.split('.')[0] for name in new})
    dtypes = sorted({str(value.dtype).removeprefix('torch.') for value in given.values()} - {'float32'})
    prefix = f' (prefix {chosen.prefix!r})' if chosen.prefix else ''
    unused = sorted(backbone.prefix for backbone in backbones if backbone is not chosen)
    stages = sorted({name.split('.')[1] for name in left_out if not name.startswith('norm')})
    arch = _arch(model.depths, model.channels)
    name = arch if isinstance(arch, str) else as_written({'arch': arch}).removeprefix('arch=')
    file = as_written({'arch': arguments_of(chosen.tensors)['arch']})
    return '; '.join(
        (
            f'ConvNeXt {name}: {len(given)} of {sum(1 for _ in model.parameters()) - len(new)} tensors from '
            f'{"an" if chosen.dialect.name[0] in "ho" else "a"} {chosen.dialect.name} file{prefix}',
            *([f'stored as {", ".join(dtypes)}'] if dtypes else []),
            *changes,
            *([f'{", ".join(norms)} start new, as they must for ImageNet weights'] if norms else []),
            *([f'stage {", ".join(stages)} of the file ({file}) is not built by out_indices'] if stages else []),
            *([f'not taken: the copy at {", ".join(map(repr, unused))}'] if unused else []),
        )
    )


def arguments_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of ConvNeXt that weights under our names ask for."""

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape) if name in tensors and tensors[name].ndim == 4 else ()

    matches = (re.match(r'stages\.(\d)\.(\d+)\.', name) for name in tensors)
    blocks = {(int(match[1]), int(match[2])) for match in matches if match}
    stages = sorted({stage for stage, _ in blocks})
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in stages)
    narrow = re.compile(r'stages\.(\d)\.\d+\.(?:dwconv\.bias|norm\.weight|norm\.bias|pwconv2\.bias)')
    widths = {match[1]: tensors[match[0]].numel() for match in map(narrow.fullmatch, tensors) if match}
    channels = tuple(widths.get(str(stage), 0) for stage in stages)
    stem, kernel = shape('downsample_layers.0.0.weight'), shape('stages.0.0.dwconv.weight')
    scaled = any(re.match(r'stages.*\d\.gamma', name) for name in tensors)
    return {
        'arch': _arch(depths, channels),
        'use_grn': any('.grn.' in name for name in tensors),
        'layer_scale_init_value': 1.0 if scaled else 0,
        **(dict(in_channels=stem[1], stem_patch_size=stem[2]) if stem else {}),
        **(dict(kernel_size=kernel[2]) if kernel else {}),
    }


def _arch(depths: tuple[int, ...], channels: tuple[int, ...]) -> str | dict[str, tuple[int, ...]]:

    arch = dict(depths=depths, channels=channels)
    return next((name for name, known in ARCHS.items() if known == arch), arch)


def as_written(arguments: Mapping[str, Any]) -> str:
    """Arguments as they stand in a config."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return f'dict({as_written({key: list(numbers) for key, numbers in item.items()})})'
        return repr(item)

    return ', '.join(f'{key}={value(item)}' for key, item in arguments.items())


def _advice(model: nn.Module, chosen: Backbone) -> str:
    """What the file looks like beside what the model is, and the arguments to change."""
    file, own = arguments_of(chosen.tensors), arguments_of(dict(model.named_parameters()))
    own['arch'] = _arch(model.depths, model.channels)  # with the stages that out_indices leaves out
    differing = [key for key in file if file[key] != own.get(key)]
    text = (
        f': the file ({chosen.dialect.name} names, prefix {chosen.prefix!r}) looks like '
        f'{as_written({"arch": file["arch"]})}, the model is {as_written({"arch": own["arch"]})}; '
    )
    if not differing:
        return text + 'the file is incomplete or damaged: give another one'
    return (
        text + f'set {as_written({key: file[key] for key in differing})} in the backbone, or give a file for '
        f'{as_written({key: own[key] for key in differing if key in own})}'
    )
