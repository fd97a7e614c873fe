"""The file formats of ConvNeXt weights ("dialects"), as tables of tensor names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

# The two kinds of networks: four stages, or blocks of one width (by the names of our classes).
STAGED, ISOTROPIC = 'ConvNeXt', 'ConvNeXtIsotropic'

# The placeholders of the tables: layer of the stem, stage, stage behind a downsampling, block, 0 or 1 in a pair of
# layers, parameter.
PLACEHOLDERS = {'n': '[0-3]', 's': '[0-3]', 'd': '[1-3]', 'b': r'\d{1,3}', 'k': '[01]', 'p': 'weight|bias'}


@dataclass(frozen=True)
class Dialect:
    """One file format.

    Attributes:
        name: As in messages and in ``tools/convert_checkpoint.py``.
        rows: (our tensor name, theirs) with the placeholders above.
        others: Patterns of what such a file holds beside the backbone: classifier, final norm, decoder.
        layouts: How they store a tensor of ours, by the end of our name; the way back is :func:`our_layout`.
        family: :data:`STAGED` or :data:`ISOTROPIC`.
    """

    name: str
    rows: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    layouts: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    family: str = STAGED

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


_STEM = ('downsample_layers.0.{n}.{p}', 'downsample_layers.0.{n}.{p}')

_DOWNSAMPLE = ('downsample_layers.{d}.{k}.{p}', 'downsample_layers.{d}.{k}.{p}')

_OUTPUT_NORM = ('norm{s}.{p}', 'norm{s}.{p}')

_TIMM = (
    ('downsample_layers.0.{n}.{p}', 'stem.{n}.{p}'),
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
        # norms.3 is DINOv3's second name for its final norm; EUPE has norms and projectors of its distillation besides.
        (r'(norm|norms\.\d|head)\.(weight|bias)', r'projectors\..*'),
        {'grn.gamma': _grn_4d, 'grn.beta': _grn_4d},
    ),
    # Ours and the official code for classification.
    Dialect(
        'official isotropic',
        (
            ('stem.{p}', 'stem.{p}'),
            *((f'blocks.{{b}}.{layer}.{{p}}',) * 2 for layer in ('dwconv', 'norm', 'pwconv1', 'pwconv2')),
            ('blocks.{b}.gamma', 'blocks.{b}.gamma'),
            ('norm0.{p}', 'norm0.{p}'),
        ),
        (r'(norm|head)\.(weight|bias)',),
        family=ISOTROPIC,
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
