"""Fit the tensors of a file to a ConvNeXt: completely, or with an error that says what does not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_dense.archs import DEFAULT_KERNEL_SIZE, VARIANTS, arch_name, isotropic_arch_name, variant_arguments
from convnext_dense.errors import UserError
from convnext_dense.weights.dialects import ISOTROPIC, STAGED
from convnext_dense.weights.find import Backbone, choose, find_backbones, tensors_of

# The first convolution, by the kind of network.
STEMS = {STAGED: 'downsample_layers.0.0.weight', ISOTROPIC: 'stem.weight'}
SHOWN = 3  # names in a message
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """What a ConvNeXt wants from a file.

    Attributes:
        family: :data:`~convnext_dense.weights.dialects.STAGED` or ``ISOTROPIC``.
        shapes: Shape of each of its parameters, by name.
        dtype: Type of its parameters.
        arch: Its arch as an argument of the model, with the stages that are not built.
        kernel_sizes: Sides of the depthwise kernels of each stage.
        out_indices: The stages that it outputs.
        place: Where it is in the model around it, such as ``backbone.``, for messages.
    """

    family: str
    shapes: Mapping[str, Shape]
    dtype: torch.dtype
    arch: str | dict[str, Any]
    kernel_sizes: Shape
    out_indices: Shape
    place: str = ''

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor belongs to a stage or an output norm that ``out_indices`` leaves out."""
        norm = re.match(r'norm(\d)\.', name)
        if norm:
            return int(norm[1]) not in self.out_indices
        stage = re.match(r'(?:stages|downsample_layers)\.(\d)\.', name)
        return stage is not None and int(stage[1]) > self.out_indices[-1]


@dataclass(frozen=True)
class Fitted:
    """The tensors for a ConvNeXt.

    Attributes:
        tensors: By our names, in our layouts. Output norms that the file lacks are not among them.
        summary: One line that says what was found.
    """

    tensors: dict[str, Tensor]
    summary: str


def fit(wanted: Wanted, checkpoint: Any, prefix: str | None = None) -> Fitted:
    """Find a ConvNeXt in a checkpoint of any dialect and fit its tensors.

    Args:
        wanted: What the model wants.
        checkpoint: A state dict, or a whole checkpoint around one.
        prefix: Which ConvNeXt, where the checkpoint has several; see :func:`choose`.

    Raises:
        UserError: There is none, or it does not fit; see :func:`fit_backbone`.
    """
    tensors = tensors_of(checkpoint)
    backbones = find_backbones(tensors)
    if not backbones:
        raise UserError(_nothing_found(wanted, checkpoint, tensors))
    backbones = [backbone for backbone in backbones if backbone.dialect.family == wanted.family] or backbones
    chosen = choose(backbones, prefix)
    unused = [backbone.prefix for backbone in backbones if backbone is not chosen]
    return fit_backbone(wanted, chosen, unused)


def fit_backbone(wanted: Wanted, backbone: Backbone, unused_prefixes: Sequence[str] = ()) -> Fitted:
    """Fit the tensors of one ConvNeXt that was found in a file.

    Args:
        wanted: What the model wants.
        backbone: What the file has.
        unused_prefixes: Prefixes of other copies in the file, for the summary.

    Raises:
        UserError: The file holds the other kind of network, a tensor of the model other than the output norms has no
            match, a tensor of the file has no use, or a shape or type differs.
    """
    family = backbone.dialect.family
    if family != wanted.family:
        of_file = as_written({'arch': arguments_of(backbone.tensors)['arch']})
        raise UserError(
            f'these weights are those of a {family}, {of_file}, the model{_at(wanted)} is a {wanted.family}: set '
            f"type='{family}', {of_file} in the backbone, or give a file for a {wanted.family}"
        )
    left_out = []
    given = {}
    for name, value in backbone.tensors.items():
        if name not in wanted.shapes and wanted.is_left_out(name):
            left_out.append(name)
        else:
            given[name] = value
    new_norms = _norms_without_weights(wanted, given)

    missing = [name for name in wanted.shapes if name not in given and name.split('.')[0] not in new_norms]
    unknown = list(backbone.surplus)
    for name in given:
        if name not in wanted.shapes:
            unknown.append(backbone.names[name])
    given, changes = _adapt(wanted, given)
    differing = _differing(wanted, given, backbone)
    if missing or unknown or differing:
        raise UserError(_misfit(wanted, backbone, missing, unknown, differing))
    return Fitted(given, _summary(wanted, backbone, given, new_norms, left_out, changes, unused_prefixes))


def _norms_without_weights(wanted: Wanted, given: Mapping[str, Tensor]) -> list[str]:
    """Output norms of the model of which the file has no tensor, such as ``norm0``: ImageNet files have none."""
    norms = []
    for name in wanted.shapes:
        norm = name.split('.')[0]
        if re.fullmatch(r'norm\d', norm) and norm not in norms:
            norms.append(norm)
    return [norm for norm in norms if f'{norm}.weight' not in given and f'{norm}.bias' not in given]


def _differing(wanted: Wanted, given: Mapping[str, Tensor], backbone: Backbone) -> list[str]:
    """What is wrong with the types and shapes of tensors that have a match."""
    differing = []
    for name, shape in wanted.shapes.items():
        value = given.get(name)
        if value is None:
            continue
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            differing.append(f'{backbone.names[name]} of type {value.dtype} for {wanted.dtype}')
        elif tuple(value.shape) != shape:
            differing.append(f'{backbone.names[name]} {tuple(value.shape)} for {shape}')
    return differing


def _adapt(wanted: Wanted, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt the stem and the depthwise kernels to a model that was asked for with other ones; say what was done."""
    given = dict(given)
    changes = []
    stem_name = STEMS[wanted.family]
    stem = given.get(stem_name)
    channels = wanted.shapes[stem_name][1]
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 3 != channels:
        given[stem_name] = _stem_for(stem, channels)
        changes.append(f'the stem is adapted from 3 to {channels} input channels')
    sides = set()  # before, after
    for name, kernel in given.items():
        block = re.match(r'stages\.(\d)\.\d+\.dwconv\.weight', name)
        side = wanted.kernel_sizes[int(block[1])] if block else DEFAULT_KERNEL_SIZE
        if side != DEFAULT_KERNEL_SIZE and kernel.ndim == 4 and kernel.shape[2] == kernel.shape[3] != side:
            sides.add((kernel.shape[2], side))
            given[name] = _resized(kernel, side)
    for before, side in sorted(sides):
        changes.append(f'depthwise kernels are interpolated from {before}x{before} to {side}x{side}')
    return given, changes


def _stem_for(stem: Tensor, channels: int) -> Tensor:
    """The weight of a stem (C, 3, k, k) for another number of input channels, as timm does it."""
    if channels == 1:
        return stem.float().sum(1, keepdim=True).to(stem.dtype)
    # Red, green, blue, red, ... at the strength of three channels.
    repeated = stem.float().repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels]
    return (repeated * (3 / channels)).to(stem.dtype)


def _resized(kernel: Tensor, side: int) -> Tensor:
    """(C, 1, k, k) -> (C, 1, side, side) of about the same sum."""
    resized = F.interpolate(kernel.float(), size=(side, side), mode='bicubic', align_corners=False)
    return (resized * (kernel.shape[2] / side) ** 2).to(kernel.dtype)


def _nothing_found(wanted: Wanted, checkpoint: Any, tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    if not names:
        names = list(checkpoint) if isinstance(checkpoint, Mapping) else [type(checkpoint).__name__]
    if names:
        reason = f'it holds no ConvNeXt in a known layout, its first names are {names[:SHOWN]}; '
    else:
        reason = f'no name in it starts with {wanted.place!r}; '
    return (
        f'this load offers the {wanted.family}{_at(wanted)} none of its tensors: {reason}'
        f"give the file of a {wanted.family} as init_cfg, or load through mmengine's runner with "
        "custom_hooks=[dict(type='ConvNeXtLoadHook')], which unwraps whole files"
    )


def _misfit(wanted: Wanted, backbone: Backbone, missing: list[str], unknown: list[str], differing: list[str]) -> str:
    parts = [f'these weights do not fit the {wanted.family}{_at(wanted)}']
    for title, names in (
        ('tensors of the model are not in the file', missing),
        ('tensors of the file are not in the model', unknown),
        ('shapes differ', differing),
    ):
        if names:
            shown = ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')
            parts.append(f'{len(names)} {title}: {shown}')
    return '; '.join(parts) + _advice(wanted, backbone)


def _at(wanted: Wanted) -> str:
    return f' at {wanted.place!r}' if wanted.place else ''


def _advice(wanted: Wanted, backbone: Backbone) -> str:
    """What the file looks like beside what the model is, and the arguments to change."""
    of_file = arguments_of(backbone.tensors)
    of_model = _arguments_of_shapes(wanted.shapes)
    of_model['arch'] = wanted.arch  # with the stages that out_indices leaves out
    text = (
        f': the file ({backbone.dialect.name} names, prefix {backbone.prefix!r}) looks like '
        f'{as_written({"arch": of_file["arch"]})}, the model is {as_written({"arch": of_model["arch"]})}; '
    )
    of_file, of_model = _with_defaults(of_file), _with_defaults(of_model)
    differing = [key for key in of_file if of_file[key] != of_model.get(key)]
    if 'stem' in differing and 'stem_patch_size' in differing:
        differing.remove('stem_patch_size')  # of the one kind of stem alone
    if 'arch' in differing:  # the name of a variant brings its own stem, norm and kernels
        differing = [key for key in differing if key not in variant_arguments(of_file['arch'])]
    if not differing:
        return text + 'the file is incomplete or damaged: give another one'
    to_set = as_written({key: of_file[key] for key in differing})
    to_have = as_written({key: of_model[key] for key in differing if key in of_model})
    return text + f'set {to_set} in the backbone, or give a file for {to_have}'


def _with_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """Add what arguments that were read off shapes leave out: the stem, norm and biases of the official network."""
    if 'use_grn' not in arguments:  # isotropic
        return arguments
    official = dict(stem='patch', norm_cfg=dict(type='LN2d'), conv_bias=True, kernel_size=DEFAULT_KERNEL_SIZE)
    variant = variant_arguments(arguments['arch'])
    implied: dict[str, Any] = {key: variant.get(key, value) for key, value in official.items()}
    if implied['norm_cfg'].get('type') in ('LN2d', 'LN'):  # another eps leaves no trace
        implied['norm_cfg'] = official['norm_cfg']
    return {**implied, **arguments}


def _summary(
    wanted: Wanted,
    backbone: Backbone,
    given: Mapping[str, Tensor],
    new_norms: list[str],
    left_out: list[str],
    changes: list[str],
    unused_prefixes: Sequence[str],
) -> str:
    arch = wanted.arch
    model = arch if isinstance(arch, str) else as_written({'arch': arch}).removeprefix('arch=')
    article = 'an' if backbone.dialect.name[0] in 'aeho' else 'a'
    prefix = f' (prefix {backbone.prefix!r})' if backbone.prefix else ''
    expected = len([name for name in wanted.shapes if name.split('.')[0] not in new_norms])
    parts = [
        f'{wanted.family} {model}: {len(given)} of {expected} tensors '
        f'from {article} {backbone.dialect.name} file{prefix}'
    ]

    dtypes = {str(value.dtype).removeprefix('torch.') for value in given.values()} - {'float32'}
    if dtypes:
        parts.append(f'stored as {", ".join(sorted(dtypes))}')
    parts += changes
    looks_like = arguments_of(backbone.tensors)
    if (variant_arguments(looks_like['arch']) and looks_like['arch'] != wanted.arch) or 'norm_cfg' in looks_like:
        parts.append(f'eps, kind of norm and activation are not in the file ({as_written(looks_like)}?)')
    if new_norms:
        parts.append(f'{", ".join(sorted(new_norms))} start new, as they must for ImageNet weights')
    stages = {name.split('.')[1] for name in left_out if not name.startswith('norm')}
    if stages:
        of_file = as_written({'arch': arguments_of(backbone.tensors)['arch']})
        parts.append(f'stage {", ".join(sorted(stages))} of the file ({of_file}) is not built by out_indices')
    if unused_prefixes:
        parts.append(f'not taken: the copy at {", ".join(repr(prefix) for prefix in sorted(unused_prefixes))}')
    return '; '.join(parts)


def arguments_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of ConvNeXt or ConvNeXtIsotropic that weights under our names ask for."""
    return _arguments_of_shapes({name: tuple(value.shape) for name, value in tensors.items()})


def _arguments_of_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    blocks: dict[int, set[int]] = {}
    kernel_sizes: dict[int, int] = {}
    widths: dict[int, int] = {}
    has_grn = has_layer_scale = False
    for name, shape in shapes.items():
        block = re.match(r'(?:stages\.(\d)|blocks)\.(\d+)\.(.+)', name)
        if block is None:
            continue
        stage = int(block[1] or 0)
        blocks.setdefault(stage, set()).add(int(block[2]))
        if block[3] == 'dwconv.weight' and len(shape) == 4:
            kernel_sizes.setdefault(stage, shape[2])
        if block[3] in ('dwconv.bias', 'norm.weight', 'norm.bias', 'pwconv2.bias'):
            widths[stage] = math.prod(shape)
        has_grn = has_grn or '.grn.' in name
        has_layer_scale = has_layer_scale or block[3] == 'gamma'
    stages = sorted(blocks)
    depths = tuple(len(blocks[stage]) for stage in stages)
    channels = tuple(widths.get(stage, 0) for stage in stages)
    layer_scale = 1.0 if has_layer_scale else 0
    if any(name.startswith('blocks.') for name in shapes):
        arguments: dict[str, Any] = {
            'arch': isotropic_arch_name(depths[0], channels[0]),
            'layer_scale_init_value': layer_scale,
        }
        stem = shapes.get(STEMS[ISOTROPIC], ())
        if len(stem) == 4:
            arguments.update(in_channels=stem[1])
        return arguments
    arguments = {
        'arch': arch_name(depths, channels),
        'use_grn': has_grn,
        'layer_scale_init_value': layer_scale,
    }
    stem = shapes.get(STEMS[STAGED], ())
    kind = _stem_of_shapes(shapes)
    if len(stem) == 4:
        arguments.update(in_channels=stem[1])
    if len(stem) == 4 and kind == 'patch':
        arguments.update(stem_patch_size=stem[2])
    elif kind != 'patch':
        arguments.update(stem=kind)
    if kernel_sizes:
        sizes = tuple(kernel_sizes[stage] for stage in sorted(kernel_sizes))
        arguments.update(kernel_size=sizes if len(set(sizes)) > 1 else sizes[0])
    has_block = 'stages.0.0.norm.weight' in shapes
    if has_block and 'stages.0.0.norm.bias' not in shapes:
        arguments.update(norm_cfg=dict(type='RMSNorm'))  # or SimpleNorm, which has the same tensors
    if has_block and 'stages.0.0.dwconv.bias' not in shapes:
        arguments.update(conv_bias=False)
    return _as_variant(arguments, depths, channels)


def _stem_of_shapes(shapes: Mapping[str, Shape]) -> str:
    """The kind of stem: an overlapping one has two convolutions, with an activation between them or not."""
    convs = {}
    for position in range(3):
        shape = shapes.get(f'downsample_layers.0.{position}.weight', ())
        if len(shape) == 4:
            convs[position] = shape
    if len(convs) < 2:
        return 'patch'
    if 2 in convs:
        return 'overlap_act'
    second = convs[1]
    return 'overlap' if second[0] == second[1] else 'overlap_tiered'


def _as_variant(arguments: dict[str, Any], depths: Shape, channels: Shape) -> dict[str, Any]:
    """Name the variant of timm that has these tensors, instead of the arguments that it sets.

    Its eps and activation, which leave no trace in a file, come with the name.
    """
    visible = ('stem', 'kernel_size', 'norm_cfg')
    for name, variant in VARIANTS.items():
        if variant['arch'] != dict(depths=depths, channels=channels):
            continue
        has_bias = variant.get('norm_cfg', {}).get('type', 'LN2d') == 'LN2d'
        if (
            variant.get('stem', 'patch') == arguments.get('stem', 'patch')
            and variant.get('kernel_size', DEFAULT_KERNEL_SIZE) == arguments.get('kernel_size', DEFAULT_KERNEL_SIZE)
            and has_bias == ('norm_cfg' not in arguments)
        ):
            kept = {key: value for key, value in arguments.items() if key not in visible}
            return {**kept, 'arch': name}
    return arguments


def as_written(arguments: Mapping[str, Any]) -> str:
    """Write arguments as they stand in a config."""
    parts = []
    for key, value in arguments.items():
        if isinstance(value, dict):
            lists = {name: list(part) if isinstance(part, tuple) else part for name, part in value.items()}
            parts.append(f'{key}=dict({as_written(lists)})')
        else:
            parts.append(f'{key}={value!r}')
    return ', '.join(parts)
