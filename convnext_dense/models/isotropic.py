"""The isotropic ConvNeXt (arXiv 2201.03545, section 3.3): one patch embedding, then blocks of one width.

Official code: github.com/facebookresearch/ConvNeXt, models/convnext_isotropic.py. Parameter names are the official
ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convnext_dense.archs import DEFAULT_KERNEL_SIZE, isotropic_arch_name, resolve_isotropic_arch
from convnext_dense.errors import UserError
from convnext_dense.models.argument_names import checked_names
from convnext_dense.models.block import Block, resolve_memory
from convnext_dense.models.fusion_rule import is_transformed
from convnext_dense.models.layers import LayerNorm2d
from convnext_dense.models.loading import PretrainedModule
from convnext_dense.models.staged import check_drop_path_rate, image_too_small, linear_rates
from convnext_dense.weights.dialects import ISOTROPIC
from convnext_dense.weights.fit import Wanted

PATCH_SIZE = 16
EPS = 1e-6


class ConvNeXtIsotropic(PretrainedModule):
    """The isotropic ConvNeXt as a backbone: one feature map of stride 16.

    Detectors and segmentors that want several strides put :class:`convnext_dense.SimpleFeaturePyramid` behind it. The
    output has a LayerNorm of its own, ``norm0``: the official ``norm`` was trained on pooled vectors.

    Args:
        arch: ``'small'``, ``'base'`` or ``'large'``, or a dict of ``depth`` and ``channels``.
        in_channels: Channels of the input image.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first block. In ImageNet
            training 0.1 (small), 0.2 (base) and 0.5 (large).
        layer_scale_init_value: Initial value of the layer scale ``gamma``; 0 builds none. None is that of the arch:
            1e-6 in large, none in small and base.
        frozen_layers: Freeze the stem and the first n - 1 blocks. 0 and -1 freeze nothing.
        with_cp: As ``memory='checkpoint'``.
        memory: What a block saves for the backward pass, as in :class:`convnext_dense.ConvNeXt`.
        allow_statistics_mismatch: As in ConvNeXt.
        init_cfg: mmengine's initialisation config; ``Pretrained`` takes the sources that ConvNeXt takes. Without
            it: a normal of 0.02 for every convolution and Linear, zero biases (official).

    Attributes:
        depth: Number of blocks.
        channels: Of the output: one element.
        strides: Of the output, in pixels: one element.
        out_indices: (0,), as there is one output.

    Raises:
        UserError: An argument cannot be used, or weights do not fit.
    """

    @checked_names()
    def __init__(
        self,
        arch: str | dict = 'small',
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        frozen_layers: int = 0,
        with_cp: bool = False,
        memory: str | None = None,
        allow_statistics_mismatch: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.depth, width, layer_scale = resolve_isotropic_arch(arch)
        if layer_scale_init_value is not None:
            layer_scale = layer_scale_init_value
        if layer_scale < 0:
            raise UserError(f'ConvNeXtIsotropic needs layer_scale_init_value >= 0 (0: none), found {layer_scale}')
        check_drop_path_rate(self, drop_path_rate)
        if not -1 <= frozen_layers <= self.depth + 1:
            raise UserError(
                f'ConvNeXtIsotropic cannot freeze frozen_layers={frozen_layers}: it has a stem and {self.depth} '
                f'blocks, use -1 to {self.depth + 1}'
            )
        memory = resolve_memory(type(self).__name__, memory, with_cp)
        self.channels, self.strides, self.out_indices = (width,), (PATCH_SIZE,), (0,)
        self.kernel_size = DEFAULT_KERNEL_SIZE
        self.frozen_layers = frozen_layers
        self.allow_statistics_mismatch = allow_statistics_mismatch

        self.stem = nn.Conv2d(in_channels, width, PATCH_SIZE, PATCH_SIZE)
        blocks = []
        for rate in linear_rates(drop_path_rate, self.depth):
            blocks.append(Block(width, rate, layer_scale, False, EPS, self.kernel_size, memory=memory))
        self.blocks = nn.Sequential(*blocks)
        self.norm0 = LayerNorm2d(width, eps=EPS)

        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.train(self.training)

    def wanted_weights(self, place: str = '') -> Wanted:
        return Wanted(
            family=ISOTROPIC,
            shapes=self.shapes_of_parameters(),
            dtype=next(self.parameters()).dtype,
            arch=isotropic_arch_name(self.depth, self.channels[0]),
            kernel_sizes=(self.kernel_size,),
            out_indices=self.out_indices,
            place=place,
        )

    @property
    def num_layers(self) -> int:  # type: ignore[override]
        """Layers that layer decay tells apart: one per block."""
        return self.depth

    def layer_id(self, name: str, decay_type: str) -> int:
        """Return the layer of a parameter for layer decay.

        The official code has no rule for isotropic models. This is that of ViTDet (arXiv 2203.16527, detectron2
        ``get_vit_lr_decay_rate``): 0 for the patch embedding, then one id per block.

        Args:
            name: Name of a parameter of this module, such as ``blocks.4.pwconv1.weight``.
            decay_type: ``'layer_wise'``; there are no stages to tell apart.

        Returns:
            0 (stem) to ``num_layers + 1`` (full learning rate: the output norm, which is new).

        Raises:
            UserError: ``decay_type`` is ``'stage_wise'``, or the rule does not know the name.
        """
        if decay_type != 'layer_wise':
            raise UserError(
                f'ConvNeXtIsotropic has no stages for paramwise_cfg.decay_type={decay_type!r}: use layer_wise'
            )
        part, *rest = name.split('.')
        if part == 'stem':
            return 0
        if part == 'blocks':
            return int(rest[0]) + 1
        if part == 'norm0':
            return self.num_layers + 1
        raise UserError(
            f'layer decay does not know the ConvNeXtIsotropic parameter {name!r}: modules added to it need a layer id '
            'of their own, override ConvNeXtIsotropic.layer_id'
        )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Compute the feature map.

        Args:
            x: (N, in_channels, H, W); H and W at least 16.

        Returns:
            One contiguous tensor (N, channels, H // 16, W // 16).

        Raises:
            UserError: The image is too small.
        """
        # torch.fx passes a proxy, whose size is known only when the graph runs.
        if isinstance(x, Tensor) and min(x.shape[-2:]) < PATCH_SIZE:
            raise image_too_small(self, x, PATCH_SIZE)
        if not is_transformed():
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)  # (N, in_channels, H, W) -> (N, C, H / 16, W / 16)
        x = self.blocks(x)
        # mmcv's RoIAlign assumes contiguous NCHW and silently returns wrong values for any other layout.
        return (self.norm0(x).contiguous(),)

    def train(self, mode: bool = True) -> ConvNeXtIsotropic:
        super().train(mode)
        layers = [self.stem, *self.blocks]
        for layer in layers[: max(self.frozen_layers, 0)]:
            layer.eval()  # no stochastic depth in frozen blocks
            layer.requires_grad_(False)
        return self
