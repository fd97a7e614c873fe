"""Weights into a ConvNeXt: completely, or with an error that says what does not fit.

The file formats ("dialects") are data: each is a table of its tensor names beside ours, which are those of the official
V1 and V2 code. A dialect and the prefix of its names (wrappers such as ``model.``, ``module.``, ``backbone.``) are
found by the names in the file. Every tensor below that prefix is used or on the dialect's list of other parts.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor

from .errors import UserError

if TYPE_CHECKING:
    from .backbone import ConvNeXt

# The placeholders of the tables: stage, stage behind a downsampling, block, 0 or 1 in a pair of layers, parameter.
PLACEHOLDERS = {'s': '[0-3]', 'd': '[1-3]', 'b': r'\d{1,3}', 'k': '[01]', 'p': 'weight|bias'}


@dataclass(frozen=True)
class Dialect:
    """One file format.

    Attributes:
        name: As in messages and in ``tools/convert_checkpoint.py``.
        rows: (our tensor name, theirs) with the placeholders above.
        others: Patterns of what such a file holds beside the backbone: classifier, final norm, decoder.
        layouts: How they store a tensor of ours, by the end of our name; the way back is :func:`our_layout`.
    """

    name: str
    rows: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    layouts: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern, str]]:
        return [(re.compile(_regex(theirs)), ours) for ours, theirs in self.rows]

    @cached_property
    def _any_row(self) -> re.Pattern:
        patterns = '|'.join(re.sub(r'\?P<\w+>', '?:', pattern.pattern) for pattern, _ in self._patterns)
        return re.compile(rf'((?:.*?\.)?)({patterns})')

    def split(self, name: str) -> tuple[str, str] | None:
        """(prefix, our name) of a name in a file of this dialect; None where it is no part of a backbone."""
        match = self._any_row.fullmatch(name)
        if not match:
            return None
        for pattern, ours in self._patterns:
            parts = pattern.fullmatch(match[2])
            if parts:
                return match[1], ours.format(**parts.groupdict())
        raise AssertionError(name)

    def is_other(self, name: str) -> bool:
        """Whether a name (without its prefix) is a part that a backbone does not have."""
        return any(re.fullmatch(pattern, name) for pattern in self.others)

    def write(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Our tensors under the names and in the layouts of this dialect, and those that it has no name for."""
        written, unnamed = {}, []
        for name, value in state.items():
            for ours, theirs in self.rows:
                parts = re.fullmatch(_regex(ours), name)
                if parts:
                    layout = next((f for end, f in self.layouts.items() if name.endswith(end)), None)
                    written[theirs.format(**parts.groupdict())] = layout(value).contiguous() if layout else value
                    break
            else:
                unnamed.append(name)
        return written, unnamed


def _regex(template: str) -> str:
    return re.sub(r'\\\{(\w)\\\}', lambda match: f'(?P<{match[1]}>{PLACEHOLDERS[match[1]]})', re.escape(template))


def _block(
    prefix: str, dwconv: str, norm: str, pwconv1: str, pwconv2: str, gamma: str, grn: tuple[str, str]
) -> tuple[tuple[str, str], ...]:
    """The rows of a residual block; each argument names a layer, without ``.weight`` and ``.bias``."""
    layers = dict(dwconv=dwconv, norm=norm, pwconv1=pwconv1, pwconv2=pwconv2)
    return (
        *((f'stages.{{s}}.{{b}}.{ours}.{{p}}', f'{prefix}.{theirs}.{{p}}') for ours, theirs in layers.items()),
        ('stages.{s}.{b}.gamma', f'{prefix}.{gamma}'),
        *((f'stages.{{s}}.{{b}}.grn.{ours}', f'{prefix}.{theirs}') for ours, theirs in zip(('gamma', 'beta'), grn)),
    )


def _grn_4d(value: Tensor) -> Tensor:
    return value.view(1, 1, 1, -1)


_STEM = ('downsample_layers.0.{k}.{p}', 'downsample_layers.0.{k}.{p}')
_DOWNSAMPLE = ('downsample_layers.{d}.{k}.{p}', 'downsample_layers.{d}.{k}.{p}')
_OUTPUT_NORM = ('norm{s}.{p}', 'norm{s}.{p}')
_TIMM = (
    ('downsample_layers.0.{k}.{p}', 'stem.{k}.{p}'),
    ('downsample_layers.{d}.{k}.{p}', 'stages.{d}.downsample.{k}.{p}'),
    *_block(
        'stages.{s}.blocks.{b}', 'conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2', 'gamma', ('mlp.grn.weight', 'mlp.grn.bias')
    ),
)
_TIMM_OTHERS = (r'(norm_pre|head\.norm|head\.fc|head\.pre_logits\.fc)\.(weight|bias)',)

DIALECTS = (
    # Ours, the official code for classification, detection and segmentation, and detectron2 ports of it.
    Dialect(
        'official',
        (
            _STEM,
            _DOWNSAMPLE,
            *_block('stages.{s}.{b}', 'dwconv', 'norm', 'pwconv1', 'pwconv2', 'gamma', ('grn.gamma', 'grn.beta')),
            _OUTPUT_NORM,
        ),
        # norms.3 is DINOv3's second name for its final norm.
        (r'(norm|norms\.3|head)\.(weight|bias)',),
        {'grn.gamma': _grn_4d, 'grn.beta': _grn_4d},
    ),
    # Masked pre-training of V2, saved by its sparse encoder.
    Dialect(
        'fcmae',
        (
            _STEM,
            ('downsample_layers.{d}.0.{p}', 'downsample_layers.{d}.0.ln.{p}'),
            ('downsample_layers.{d}.1.weight', 'downsample_layers.{d}.1.kernel'),
            ('downsample_layers.{d}.1.bias', 'downsample_layers.{d}.1.bias'),
            ('stages.{s}.{b}.dwconv.weight', 'stages.{s}.{b}.dwconv.kernel'),
            ('stages.{s}.{b}.dwconv.bias', 'stages.{s}.{b}.dwconv.bias'),
            *_block(
                'stages.{s}.{b}',
                'dwconv',
                'norm.ln',
                'pwconv1.linear',
                'pwconv2.linear',
                'gamma',
                ('grn.gamma', 'grn.beta'),
            )[1:],
        ),
        (r'(norm|head|proj|pred)\.(weight|bias)', 'mask_token', r'decoder\..*'),
    ),
    Dialect('timm', _TIMM, _TIMM_OTHERS),
    # features_only=True
    Dialect(
        'timm features',
        tuple((ours, theirs.replace('stem.', 'stem_').replace('stages.', 'stages_')) for ours, theirs in _TIMM),
        _TIMM_OTHERS,
    ),
    Dialect(
        'torchvision',
        (
            ('downsample_layers.0.{k}.{p}', 'features.0.{k}.{p}'),
            *((f'downsample_layers.{s}.{{k}}.{{p}}', f'features.{2 * s}.{{k}}.{{p}}') for s in (1, 2, 3)),
            *(
                (ours.replace('{s}', str(s)), theirs)
                for s in range(4)
                for ours, theirs in _block(
                    f'features.{2 * s + 1}.{{b}}',
                    'block.0',
                    'block.2',
                    'block.3',
                    'block.5',
                    'layer_scale',
                    ('grn.gamma', 'grn.beta'),
                )[:-2]
            ),
        ),
        (r'classifier\.[02]\.(weight|bias)',),
        {'.gamma': lambda value: value.view(-1, 1, 1)},
    ),
    # ConvNextModel, ConvNextV2Model and what is made of them, such as ConvNextBackbone
    Dialect(
        'hf',
        (
            ('downsample_layers.0.0.{p}', 'embeddings.patch_embeddings.{p}'),
            ('downsample_layers.0.1.{p}', 'embeddings.layernorm.{p}'),
            ('downsample_layers.{d}.{k}.{p}', 'encoder.stages.{d}.downsampling_layer.{k}.{p}'),
            *_block(
                'encoder.stages.{s}.layers.{b}',
                'dwconv',
                'layernorm',
                'pwconv1',
                'pwconv2',
                'layer_scale_parameter',
                ('grn.weight', 'grn.bias'),
            ),
            *((f'norm{s}.{{p}}', f'hidden_states_norms.stage{s + 1}.{{p}}') for s in range(4)),
        ),
        (r'layernorm\.(weight|bias)',),
        {'grn.gamma': _grn_4d, 'grn.beta': _grn_4d},
    ),
    Dialect(
        'hf dinov3',
        (
            ('downsample_layers.{s}.{k}.{p}', 'stages.{s}.downsample_layers.{k}.{p}'),
            *_block(
                'stages.{s}.layers.{b}',
                'depthwise_conv',
                'layer_norm',
                'pointwise_conv1',
                'pointwise_conv2',
                'gamma',
                ('grn.weight', 'grn.bias'),
            )[:-2],
        ),
        (r'layer_norm\.(weight|bias)',),
    ),
    # mmpretrain 1.x and mmcls 0.x
    Dialect(
        'mmpretrain',
        (
            _STEM,
            _DOWNSAMPLE,
            *_block(
                'stages.{s}.{b}',
                'depthwise_conv',
                'norm',
                'pointwise_conv1',
                'pointwise_conv2',
                'gamma',
                ('grn.gamma', 'grn.beta'),
            ),
            _OUTPUT_NORM,
        ),
        (r'head\.fc\.(weight|bias)',),
    ),
)

# What training tools put between the parts of a name, wherever it stands.
WRAPPED_MODULES = re.compile(r'_orig_mod\.|_checkpoint_wrapped_module\.|_fsdp_wrapped_module\.')
# Of several copies of the weights in one file these come second: `model` is what the official code takes where
# `model_ema` is there too, and `teacher` is what DINO and mmdet's semi-supervised detectors test with.
SECOND_CHOICE = {'model_ema', 'ema_state_dict', 'state_dict_ema', 'ema_model', 'ema', 'student'}
MAX_WRAPPERS, MAX_TENSORS = 6, 100_000
DEFAULT_KERNEL_SIZE = 7


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


def fit_state_dict(
    model: ConvNeXt, found: Mapping[str, Any], prefix: str | None = None, note: str = '', place: str = ''
) -> dict[str, Tensor]:
    """The state dict of ``model`` out of a checkpoint, as :func:`match`; logs its line with ``note`` behind it."""
    state, line = match(model, found, prefix, place)
    print_log('; '.join(filter(None, (line, note))), logger='current')
    return state


def match(
    model: ConvNeXt, found: Mapping[str, Any], prefix: str | None = None, place: str = ''
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


def _adapted(model: ConvNeXt, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
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


def _is_left_out(model: ConvNeXt, name: str) -> bool:
    """Whether a tensor belongs to a stage or an output that ``out_indices`` leaves out."""
    norm = re.match(r'norm(\d)\.', name)
    if norm:
        return int(norm[1]) not in model.out_indices
    stage = re.match(r'(?:stages|downsample_layers)\.(\d)\.', name)
    return bool(stage) and int(stage[1]) >= len(model.stages)


def _summary(
    model: ConvNeXt,
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
    from .backbone import ARCHS  # backbone.py imports this module

    arch = dict(depths=depths, channels=channels)
    return next((name for name, known in ARCHS.items() if known == arch), arch)


def as_written(arguments: Mapping[str, Any]) -> str:
    """Arguments as they stand in a config."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return f'dict({as_written({key: list(numbers) for key, numbers in item.items()})})'
        return repr(item)

    return ', '.join(f'{key}={value(item)}' for key, item in arguments.items())


def _advice(model: ConvNeXt, chosen: Backbone) -> str:
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


def allow_mmengine_checkpoints() -> None:
    """Let torch's safe loading (``weights_only=True``) read what mmengine's runner stores: its log history.

    mmengine 0.10.7 cannot resume on torch >= 2.6 without it. ``argparse.Namespace`` is how the official code (as many
    others) stores its options. Nothing on this list can run code of the file.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):  # torch < 2.4 has no safe loading to extend
        return
    array, scalar = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))
    kinds = (bool, np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, str)
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            HistoryBuffer,
            (_history_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *{type(np.dtype(kind)) for kind in kinds},
            # numpy 2 renamed the module; files name the one or the other.
            *(
                (function, f'numpy.{module}.multiarray.{name}')
                for module in ('core', '_core')
                for function, name in ((array, '_reconstruct'), (scalar, 'scalar'))
            ),
        ]
    )


def _history_method(owner: type, name: str) -> Any:
    """Stands for ``getattr`` in a checkpoint, where mmengine's log names its statistics by it."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'the attribute {name!r} of {owner!r} is not part of a checkpoint')
