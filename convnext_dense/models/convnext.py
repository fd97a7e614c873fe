"""The ConvNeXt backbone.

Papers: "A ConvNet for the 2020s", arXiv 2201.03545; "ConvNeXt V2", arXiv 2301.00808 (global response normalisation).
Official code: github.com/facebookresearch/ConvNeXt and ConvNeXt-V2. The official V1 weights are under the MIT licence,
the V2 weights under CC BY-NC 4.0. Parameter names are the official ones, so that official files fit as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from convnext_dense.archs import (
    DEFAULT_KERNEL_SIZE,
    NUM_STAGES,
    arch_name,
    resolve_arch,
    resolve_kernel_sizes,
    variant_arguments,
)
from convnext_dense.errors import UserError
from convnext_dense.models.argument_names import checked_names
from convnext_dense.models.block import Block, resolve_memory
from convnext_dense.models.layers import (
    STEMS,
    build_downsample,
    build_stem,
    comparable,
    resolve_activation,
    resolve_norm,
)
from convnext_dense.models.loading import PretrainedModule
from convnext_dense.models.staged import StagedBackbone, linear_rates
from convnext_dense.weights.dialects import STAGED
from convnext_dense.weights.fit import Wanted

# Arguments of the official ConvNeXt that have other names here.
OFFICIAL_NAMES = dict(in_chans='in_channels', depths='arch.depths', dims='arch.channels')


class ConvNeXt(PretrainedModule, StagedBackbone):
    """ConvNeXt V1 and V2 as a backbone: features of up to four stages, each with a LayerNorm of its own.

    The defaults are the official ones. Argument names of mmpretrain's ConvNeXt are accepted, so that in an existing
    config only ``type='mmpretrain.ConvNeXt'`` has to become ``type='ConvNeXt'``. So are ``in_chans``, ``depths`` and
    ``dims`` of the official code, the last two instead of ``arch``. ``forward`` and the layer ids of layer decay are
    those of :class:`.StagedBackbone`.

    Args:
        arch: A name in :data:`ARCHS` or, with arguments that hold where they are not given here, in
            :data:`~convnext_dense.archs.VARIANTS`; or a dict of ``depths`` and ``channels`` (or ``dims``), four numbers
            each.
        in_channels: Channels of the input image. Weights for 3 are adapted to another number as in timm: their sum for
            1, repeated red, green, blue for more.
        out_indices: The stages to output, ascending; an int, a list or a tuple. Negative ones count from the last
            stage. Stages behind the last output are not built, and only outputs have a norm (``norm0`` to ``norm3``).
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first block of the arch.
        layer_scale_init_value: Initial value of the layer scale ``gamma``; 0 builds none. The detection and
            segmentation recipes set 1.0.
        use_grn: Global response normalisation as in ConvNeXt V2, which goes with ``layer_scale_init_value=0``.
        frozen_stages: Freeze the first n stages, each with the downsampling before it (stage 1: the stem). 0 and -1
            freeze nothing. Output norms are new to ImageNet weights and always train.
        with_cp: As ``memory='checkpoint'``.
        memory: What a block saves for the backward pass. ``'default'``: 6 values per token and channel (12 bytes in
            bf16); ``'lean'``: 2 values, and computes the first Linear again; ``'checkpoint'``: its input, and computes
            the whole block again. None is ``'default'`` on CPUs; on GPUs, where the fused block has not been measured
            yet, it is plain autograd.
        stem_patch_size: Kernel and stride of the stem.
        output_stride: Largest stride of the features: 8, 16 or 32, which None is too (4 is possible, and slow). Stages
            that would be coarser keep their size and dilate their kernels instead, as in DeepLab (arXiv 1706.05587,
            section 3.1); the weights stay as they are.
        kernel_size: Side of the depthwise kernels, odd, or one for each stage; None is that of the arch, 7 officially.
            Weights of another size are interpolated where it is not 7.
        norm_cfg: ``dict(type='LN2d', eps=...)`` as in mmpretrain, or with type ``'RMSNorm'`` or ``'SimpleNorm'``; None
            is that of the arch, officially LayerNorm with an eps of 1e-6.
        act_cfg: ``dict(type='GELU')`` as in mmpretrain, with ``approximate='tanh'``, or ``dict(type='SiLU')``; None is
            that of the arch, GELU officially.
        linear_pw_conv: As in mmpretrain; a Linear and a 1x1 convolution are the same function, ours is the Linear.
        gap_before_final_norm: Must be False: a pooled vector is no feature map.
        stem: ``'patch'`` (official), or one of timm's overlapping stems, two 3x3 convolutions of stride 2:
            ``'overlap'``, ``'overlap_tiered'`` (half the channels between them), ``'overlap_act'`` (an activation
            between them). None is that of the arch.
        conv_bias: Build the biases of all convolutions; the Linears of the blocks have theirs in any case.
        allow_statistics_mismatch: Do not refuse weights that were trained with inputs of another mean and standard
            deviation than those of the data preprocessor; :class:`ConvNeXtLoadHook` compares them.
        pretrained: A weight file, short for ``init_cfg=dict(type='Pretrained', checkpoint=...)``: a path, URL,
            ``hf-hub:org/name``, ``timm:name`` or the short name of an official file, in any known format.
        init_cfg: mmengine's initialisation config. Without it: a normal of 0.02 for every convolution and
            Linear, zero biases (official).

    Attributes:
        depths: Blocks of all four stages of the arch, also of those that are not built.
        channels: Of the same stages.
        out_indices: The stages in the output, resolved to 0 to 3.
        strides: Of all four stages, in pixels.

    Raises:
        UserError: An argument is unknown or cannot be used, or weights do not fit.
    """

    @checked_names(OFFICIAL_NAMES)
    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        use_grn: bool = False,
        frozen_stages: int = 0,
        with_cp: bool = False,
        memory: str | None = None,
        stem_patch_size: int = 4,
        output_stride: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        linear_pw_conv: bool = True,
        gap_before_final_norm: bool = False,
        stem: str | None = None,
        conv_bias: bool = True,
        allow_statistics_mismatch: bool = False,
        pretrained: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if pretrained is not None:
            if init_cfg is not None:
                raise UserError('ConvNeXt was given both pretrained and init_cfg: give one of them')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        if layer_scale_init_value < 0:
            raise UserError(f'ConvNeXt needs layer_scale_init_value >= 0 (0: none), found {layer_scale_init_value}')
        memory = resolve_memory(type(self).__name__, memory, with_cp)
        if gap_before_final_norm:
            raise UserError(
                'gap_before_final_norm=True makes a pooled vector for classification, a dense predictor '
                'needs feature maps: set gap_before_final_norm=False or leave it out'
            )
        variant = variant_arguments(arch)
        stem = stem or variant.get('stem', 'patch')
        self.norm_cfg = norm_cfg or variant.get('norm_cfg') or dict(type='LN2d')
        self.act_cfg = act_cfg or variant.get('act_cfg') or dict(type='GELU')
        kernel_sizes = resolve_kernel_sizes(kernel_size or variant.get('kernel_size', DEFAULT_KERNEL_SIZE))
        norm, norm2d = resolve_norm(self.norm_cfg)
        act = resolve_activation(self.act_cfg)
        if stem not in STEMS:
            raise UserError(f'ConvNeXt has no stem={stem!r}: use one of {", ".join(STEMS)}')
        if stem != 'patch' and stem_patch_size != 4:
            raise UserError(f'stem={stem!r} has a stride of 4, found stem_patch_size={stem_patch_size}: leave it out')
        strides = [stem_patch_size * 2**i for i in range(NUM_STAGES)]
        if output_stride not in (None, *strides):
            raise UserError(
                f'ConvNeXt cannot use output_stride={output_stride}: use one of {", ".join(map(str, strides))}'
            )
        built_strides = tuple(min(stride, output_stride or stride) for stride in strides)
        depths, channels = resolve_arch(arch)
        super().__init__(depths, out_indices, drop_path_rate, frozen_stages, built_strides, init_cfg)
        self.arch = arch.lower() if isinstance(arch, str) else arch_name(depths, channels)
        self.channels = channels
        self.kernel_sizes = kernel_sizes
        self.allow_statistics_mismatch = allow_statistics_mismatch

        drop_path_rates = linear_rates(drop_path_rate, sum(self.depths))
        for i in range(self.num_built):
            dilation = strides[i] // self.strides[i]
            if i == 0:
                downsample = build_stem(stem, in_channels, channels[0], stem_patch_size, norm2d, act, conv_bias)
            else:
                downsample = build_downsample(channels[i - 1], channels[i], dilation, norm2d, conv_bias)
            self.downsample_layers.append(downsample)
            blocks = []
            for _ in range(self.depths[i]):
                block = Block(
                    self.channels[i],
                    drop_path_rates.pop(0),
                    layer_scale_init_value,
                    use_grn,
                    eps=0.0,
                    kernel_size=kernel_sizes[i],
                    dilation=dilation,
                    memory=memory,
                    norm=norm,
                    act=act,
                    conv_bias=conv_bias,
                )
                blocks.append(block)
            self.stages.append(nn.Sequential(*blocks))
        for i in self.out_indices:
            self.add_module(f'norm{i}', norm2d(self.channels[i]))

        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                # Officially truncated at -2 and 2, a hundred deviations away, where nothing is left to cut off.
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.freeze_stages()

    def contradictions(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        implied = variant_arguments(arguments['arch']) if 'arch' in arguments else None
        if implied is None:
            return {}
        wrong = {}
        for key, own, official in (
            ('norm_cfg', self.norm_cfg, dict(type='LN2d')),
            ('act_cfg', self.act_cfg, dict(type='GELU')),
        ):
            wanted = implied.get(key, official)
            if comparable(own) != comparable(wanted):
                wrong[key] = wanted
        return wrong

    def wanted_weights(self, place: str = '') -> Wanted:
        return Wanted(
            family=STAGED,
            shapes=self.shapes_of_parameters(),
            dtype=next(self.parameters()).dtype,
            arch=self.arch,
            kernel_sizes=self.kernel_sizes,
            out_indices=self.out_indices,
            place=place,
        )
