"""The published architectures: blocks, channels and strides of each stage."""

from __future__ import annotations

from collections.abc import Sequence

from convnext_dense.errors import UserError

# Blocks and channels of each stage: V1 paper section 3 and Table 12, V2 paper Table 15 (atto to nano, huge).
ARCHS: dict[str, dict[str, tuple[int, ...]]] = {
    'atto': dict(depths=(2, 2, 6, 2), channels=(40, 80, 160, 320)),
    'femto': dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)),
    'pico': dict(depths=(2, 2, 6, 2), channels=(64, 128, 256, 512)),
    'nano': dict(depths=(2, 2, 8, 2), channels=(80, 160, 320, 640)),
    'tiny': dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    'small': dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
    'base': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    'large': dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536)),
    'xlarge': dict(depths=(3, 3, 27, 3), channels=(256, 512, 1024, 2048)),
    'huge': dict(depths=(3, 3, 27, 3), channels=(352, 704, 1408, 2816)),
}

NUM_STAGES = 4
DEFAULT_KERNEL_SIZE = 7

# The isotropic models of the V1 paper (section 3.3, Table 2; official code, models/convnext_isotropic.py): blocks,
# channels and initial layer scale; 0 is none.
ISOTROPIC_ARCHS: dict[str, dict[str, int | float]] = {
    'small': dict(depth=18, channels=384, layer_scale_init_value=0.0),
    'base': dict(depth=18, channels=768, layer_scale_init_value=0.0),
    'large': dict(depth=36, channels=1024, layer_scale_init_value=1e-6),
}


def resolve_arch(arch: str | dict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and channels of each stage, ``(depths, channels)``, of an arch name or a dict."""
    if isinstance(arch, str):
        if arch.lower() not in ARCHS:
            raise UserError(
                f'ConvNeXt has no arch {arch!r}: use one of {", ".join(ARCHS)}, or a dict '
                'such as dict(depths=[3, 3, 9, 3], channels=[96, 192, 384, 768])'
            )
        arch = ARCHS[arch.lower()]
    keys = set(arch)
    if keys not in ({'depths', 'channels'}, {'depths', 'dims'}):
        raise UserError(
            f'a ConvNeXt arch given as a dict needs the keys depths and channels (or dims), found {sorted(keys)}'
        )
    depths, channels = tuple(arch['depths']), tuple(arch['channels'] if 'channels' in arch else arch['dims'])
    for key, values in (('depths', depths), ('channels', channels)):
        if len(values) != NUM_STAGES or not all(type(v) is int and v > 0 for v in values):
            raise UserError(f'a ConvNeXt arch needs {NUM_STAGES} positive whole numbers in {key}, found {list(values)}')
    return depths, channels


def resolve_isotropic_arch(arch: str | dict) -> tuple[int, int, float]:
    """Blocks, channels and initial layer scale of an isotropic ConvNeXt, of an arch name or a dict.

    Raises:
        UserError: There is no such arch.
    """
    if isinstance(arch, str):
        if arch.lower() not in ISOTROPIC_ARCHS:
            raise UserError(
                f'ConvNeXtIsotropic has no arch {arch!r}: use one of {", ".join(ISOTROPIC_ARCHS)}, or a dict such as '
                'dict(depth=18, channels=384)'
            )
        arch = ISOTROPIC_ARCHS[arch.lower()]
    sizes = dict(arch)
    layer_scale_init_value = float(sizes.pop('layer_scale_init_value', 0.0))
    if set(sizes) != {'depth', 'channels'} or not all(type(size) is int and size > 0 for size in sizes.values()):
        raise UserError(
            'a ConvNeXtIsotropic arch given as a dict needs depth and channels, positive whole numbers, found '
            f'{dict(arch)}'
        )
    return sizes['depth'], sizes['channels'], layer_scale_init_value


def resolve_out_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    """Stages to output, as ascending numbers from 0; negative ones count from the last stage."""
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    resolved = [i + NUM_STAGES if type(i) is int and i < 0 else i for i in indices]
    if (
        not resolved
        or not all(type(i) is int and 0 <= i < NUM_STAGES for i in resolved)
        or any(a >= b for a, b in zip(resolved, resolved[1:]))
    ):
        raise UserError(
            f'ConvNeXt cannot use out_indices={out_indices!r}: give one or more of the stages 0 to '
            f'{NUM_STAGES - 1} (or -{NUM_STAGES} to -1), each once and in ascending order'
        )
    return tuple(resolved)


def arch_name(depths: tuple[int, ...], channels: tuple[int, ...]) -> str | dict[str, tuple[int, ...]]:
    """Return the name of an arch, or its dict where it has none."""
    arch = dict(depths=depths, channels=channels)
    for name, known in ARCHS.items():
        if known == arch:
            return name
    return arch


def isotropic_arch_name(depth: int, channels: int) -> str | dict[str, int]:
    """Return the name of an isotropic arch, or its dict where it has none."""
    for name, known in ISOTROPIC_ARCHS.items():
        if (known['depth'], known['channels']) == (depth, channels):
            return name
    return dict(depth=depth, channels=channels)
