"""The published architectures: blocks, channels and strides of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

# timm's variants (timm 1.0.31, timm/models/convnext.py): an arch with further arguments of ConvNeXt, which hold where
# they are not given. `ConvNeXt(arch='xxlarge')` has timm's eps.
EPS_5 = dict(type='LN2d', eps=1e-5)
TANH_GELU = dict(type='GELU', approximate='tanh')
ZEPTO = dict(depths=(2, 2, 4, 2), channels=(32, 64, 128, 256))
TEST_2_AND_3 = dict(depths=(1, 1, 1, 1), channels=(32, 64, 96, 128))
VARIANTS: dict[str, dict[str, Any]] = {
    'zepto_rms': dict(arch=ZEPTO, norm_cfg=dict(type='SimpleNorm')),
    'zepto_rms_ols': dict(arch=ZEPTO, norm_cfg=dict(type='SimpleNorm'), stem='overlap_act'),
    'atto_ols': dict(arch=ARCHS['atto'], stem='overlap_tiered'),
    'atto_rms': dict(arch=ARCHS['atto'], norm_cfg=dict(type='RMSNorm')),
    'femto_ols': dict(arch=ARCHS['femto'], stem='overlap_tiered'),
    'pico_ols': dict(arch=ARCHS['pico'], stem='overlap_tiered'),
    'nano_ols': dict(arch=ARCHS['nano'], stem='overlap'),
    'xxlarge': dict(arch=dict(depths=(3, 4, 30, 3), channels=(384, 768, 1536, 3072)), norm_cfg=EPS_5),
    'test_convnext': dict(arch=dict(depths=(1, 2, 4, 2), channels=(24, 32, 48, 64)), norm_cfg=EPS_5, act_cfg=TANH_GELU),
    'test_convnext2': dict(arch=TEST_2_AND_3, norm_cfg=EPS_5, act_cfg=TANH_GELU),
    'test_convnext3': dict(arch=TEST_2_AND_3, norm_cfg=EPS_5, act_cfg=dict(type='SiLU'), kernel_size=(7, 5, 5, 3)),
}

V2 = dict(use_grn=True, layer_scale_init_value=0)
# Every ConvNeXt of timm 1.0.31 by its name there, as arguments of ours. `large_mlp` and `tiny_hnf` differ in the head
# only.
TIMM_MODELS: dict[str, dict[str, Any]] = {
    **{f'convnext_{name}': dict(arch=name) for name in ARCHS if name != 'huge'},
    'convnext_large_mlp': dict(arch='large'),
    'convnext_tiny_hnf': dict(arch='tiny'),
    **{f'convnext_{name}': dict(arch=name) for name in VARIANTS if not name.startswith('test_')},
    **{name: dict(arch=name) for name in VARIANTS if name.startswith('test_')},
    **{f'convnextv2_{name}': dict(arch=name, **V2) for name in ARCHS if name != 'xlarge'},
}
# Of these timm's pointwise layers are 1x1 convolutions, of the others they are Linears.
TIMM_CONVOLUTIONS = ('atto', 'femto', 'pico', 'nano', 'zepto')

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
        name = arch.lower()
        if name not in ARCHS and name not in VARIANTS:
            raise UserError(
                f'ConvNeXt has no arch {arch!r}: use one of {", ".join([*ARCHS, *VARIANTS])}, or a dict '
                'such as dict(depths=[3, 3, 9, 3], channels=[96, 192, 384, 768])'
            )
        arch = ARCHS[name] if name in ARCHS else VARIANTS[name]['arch']
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


def variant_arguments(arch: str | dict) -> dict[str, Any]:
    """Return the arguments of ConvNeXt that a variant of timm sets beside its depths and channels."""
    if not isinstance(arch, str):
        return {}
    arguments = dict(VARIANTS.get(arch.lower(), {}))
    arguments.pop('arch', None)
    return arguments


def resolve_kernel_sizes(kernel_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the side of the depthwise kernels of each stage.

    Raises:
        UserError: It is neither an odd number nor one for each stage.
    """
    sizes = (kernel_size,) * NUM_STAGES if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sizes) != NUM_STAGES or not all(type(size) is int and size > 0 and size % 2 for size in sizes):
        raise UserError(
            f'ConvNeXt needs an odd kernel_size, or one for each of the {NUM_STAGES} stages, found {kernel_size}: the '
            f'official one is {DEFAULT_KERNEL_SIZE}'
        )
    return sizes


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
