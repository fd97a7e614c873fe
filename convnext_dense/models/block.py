"""One residual block of ConvNeXt: the plain formula, and the choice between it and the fused one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext_dense.errors import UserError
from convnext_dense.models.fused_block import (
    BlockOptions,
    BlockParameters,
    FoldedParameters,
    FusedBranch,
    branch_forward,
    fold,
    fold_and_pack,
)
from convnext_dense.models.fusion_rule import is_transformed, what_to_fuse
from convnext_dense.models.layers import GRN, DropPath, global_response_norm

TensorFunction = Callable[[Tensor], Tensor]
MEMORY_MODES = ('default', 'lean', 'checkpoint')


def residual_branch(
    x: Tensor,
    dwconv: TensorFunction,
    norm: TensorFunction,
    pwconv1: TensorFunction,
    act: TensorFunction,
    grn: TensorFunction,
    pwconv2: TensorFunction,
    gamma: Tensor | None,
) -> Tensor:
    """The branch of a block, the reference for every faster formulation (V1 paper, Figure 4; V2 paper, Figure 5).

    Args:
        x: (N, C, H, W); in channels_last memory no step copies it.
        dwconv: Depthwise convolution, (N, C, H, W) -> (N, C, H, W).
        norm: LayerNorm over C.
        pwconv1: Linear, C -> 4C.
        act: GELU.
        grn: Global response normalisation of ConvNeXt V2; the identity in V1.
        pwconv2: Linear, 4C -> C.
        gamma: Layer scale (C,), or None.

    Returns:
        (N, C, H, W).
    """
    y = dwconv(x)
    y = y.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
    y = norm(y)
    y = pwconv1(y)  # (N, H, W, C) -> (N, H, W, 4C)
    y = act(y)
    y = grn(y)
    y = pwconv2(y)  # (N, H, W, 4C) -> (N, H, W, C)
    if gamma is not None:
        y = y * gamma
    return y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class Block(nn.Module):
    """One residual block: ``x + drop_path(residual_branch(x))``.

    Where :func:`convnext_dense.models.fusion_rule.what_to_fuse` allows it, the block runs as one fused function, which
    computes the same; otherwise it calls its parts.

    Args:
        channels: C.
        drop_path: Rate of stochastic depth.
        layer_scale_init_value: Initial value of ``gamma``; 0 builds none.
        use_grn: Build the global response normalisation of ConvNeXt V2.
        eps: Of LayerNorm; not of another ``norm``.
        kernel_size: Side of the depthwise kernel, odd.
        dilation: Of the depthwise kernel.
        memory: What the fused block saves for the backward pass: ``'default'``, ``'lean'`` or ``'checkpoint'`` (see
            :mod:`convnext_dense.models.fused_block`). None is ``'default'`` on CPUs and the plain block on GPUs.
        norm: Makes the norm over the last dimension of a number of channels; None is LayerNorm. With another norm or
            activation the plain block runs.
        act: Makes the activation.
        conv_bias: Build the bias of the depthwise convolution.
    """

    def __init__(
        self,
        channels: int,
        drop_path: float,
        layer_scale_init_value: float,
        use_grn: bool,
        eps: float,
        kernel_size: int,
        dilation: int = 1,
        memory: str | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        act: Callable[[], nn.Module] = nn.GELU,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.dwconv = nn.Conv2d(
            channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels, bias=conv_bias
        )
        self.norm = norm(channels) if norm else nn.LayerNorm(channels, eps=eps)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = act()
        self.grn = GRN(4 * channels) if use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma: nn.Parameter | None = None
        if layer_scale_init_value > 0:
            self.gamma = nn.Parameter(torch.full((channels,), float(layer_scale_init_value)))
        self.drop_path = DropPath(drop_path)

        self.memory = memory
        # Folded and packed parameters by the type to compute in; None unless `prepare_for_inference` was called.
        self._prepared: dict[torch.dtype, FoldedParameters] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (N, C, H, W), best in channels_last memory.

        Returns:
            (N, C, H, W).
        """
        fused = what_to_fuse(self, x)
        if fused is not None:
            params, dtype = fused
            return self.fused(x, dtype, params)
        if self.memory == 'checkpoint' and torch.is_grad_enabled() and isinstance(x, Tensor) and not is_transformed():
            return checkpoint(self.plain, x, use_reentrant=False)
        return self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """Apply the block part by part."""
        branch = residual_branch(x, self.dwconv, self.norm, self.pwconv1, self.act, self.grn, self.pwconv2, self.gamma)
        return x + self.drop_path(branch)

    def fused(self, x: Tensor, dtype: torch.dtype, params: BlockParameters) -> Tensor:
        """Apply the block as one function that computes in ``dtype``; samples that are dropped are not computed."""
        # As in the plain block under autocast: a layer scale in fp32 lifts the residual sum to fp32.
        sum_dtype = torch.promote_types(x.dtype, dtype if params.gamma is None else params.gamma.dtype)
        kept, scale = self._kept_samples(x)
        computed = x if kept is None else _take_samples(x, kept)
        residual = computed.to(sum_dtype).contiguous(memory_format=torch.channels_last)
        inside = computed.to(dtype).contiguous(memory_format=torch.channels_last)

        options = self._options(scale, dtype)
        if torch.is_grad_enabled() and _any_requires_grad(x, params):
            out = FusedBranch.apply(residual, inside, options, plain_branch, *params)
        elif len(inside):
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                folded = self._folded(params, options)
                out, _ = branch_forward(residual, inside, folded, options, save=False)
        else:
            out = residual
        if kept is None:
            return out
        return _put_samples(x.to(sum_dtype), kept, out)

    def prepare(self, prepared: bool) -> None:
        """Promise that the parameters stay as they are until further notice, or take the promise back."""
        self._prepared = {} if prepared else None

    def train(self, mode: bool = True) -> Block:
        if mode:
            self.prepare(False)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights can neither be copied nor pickled; a copy may get other parameters.
        return {**self.__dict__, '_prepared': None}

    def _apply(self, *args: Any, **kwargs: Any) -> Block:
        self.prepare(False)  # other devices or types
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.prepare(False)
        super()._load_from_state_dict(*args, **kwargs)

    def _kept_samples(self, x: Tensor) -> tuple[Tensor | None, float]:
        """Draw the numbers of the samples that stochastic depth keeps (None: all), and the factor of their branch."""
        mask = self.drop_path.draw(len(x))
        if mask is None:
            return None, 1.0
        kept = None if mask.all() else mask.nonzero().squeeze(1).to(x.device)
        return kept, 1 / (1 - self.drop_path.rate)

    def _options(self, scale: float, dtype: torch.dtype) -> BlockOptions:
        return BlockOptions(
            norm_eps=cast(nn.LayerNorm, self.norm).eps,  # the parts are plain
            grn_eps=getattr(self.grn, 'eps', 0.0),
            padding=int(self.dwconv.padding[0]),
            dilation=self.dwconv.dilation[0],
            scale=scale,
            dtype=dtype,
            memory=self.memory or 'default',
        )

    def _folded(self, params: BlockParameters, options: BlockOptions) -> FoldedParameters:
        if self._prepared is None or options.scale != 1:
            return fold(params, options)
        if options.dtype not in self._prepared:
            self._prepared[options.dtype] = fold_and_pack(params, options)
        return self._prepared[options.dtype]


def plain_branch(x: Tensor, params: BlockParameters, options: BlockOptions) -> Tensor:
    """The plain branch with its scale, as a function of parameters: what the fused block differentiates twice.

    Args:
        x: (N, C, H, W), of the type to compute in.
        params: In their own types.
        options: Of the block.
    """
    casts = (None if param is None else param.to(options.dtype) for param in params)
    cast = BlockParameters._make(casts)

    def grn(y: Tensor) -> Tensor:
        if cast.grn_gamma is None or cast.grn_beta is None:
            return y
        return global_response_norm(y, cast.grn_gamma, cast.grn_beta, options.grn_eps)

    branch = residual_branch(
        x,
        dwconv=partial(
            F.conv2d,
            weight=cast.dwconv_weight,
            bias=cast.dwconv_bias,
            padding=options.padding,
            dilation=options.dilation,
            groups=x.shape[1],
        ),
        norm=partial(
            F.layer_norm,
            normalized_shape=cast.norm_weight.shape,
            weight=cast.norm_weight,
            bias=cast.norm_bias,
            eps=options.norm_eps,
        ),
        pwconv1=partial(F.linear, weight=cast.pwconv1_weight, bias=cast.pwconv1_bias),
        act=F.gelu,
        grn=grn,
        pwconv2=partial(F.linear, weight=cast.pwconv2_weight, bias=cast.pwconv2_bias),
        gamma=cast.gamma,
    )
    return branch * options.scale


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """Promise that the parameters of ``model`` stay as they are, so that its blocks fold and pack them once.

    Without it a block folds its parameters at every call, since code such as a mean teacher changes them in place
    without a trace. ``model.train()``, loading a state dict and moving the model to another device or type take the
    promise back; call it again after any other change of a parameter.

    Args:
        model: Any module with ConvNeXt blocks in it; it is put into ``eval()`` mode.

    Returns:
        The same module.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, Block):
            module.prepare(True)
    return model


def undo_prepare_for_inference(model: nn.Module) -> nn.Module:
    """Take back the promise of :func:`prepare_for_inference`; the model stays in its mode."""
    for module in model.modules():
        if isinstance(module, Block):
            module.prepare(False)
    return model


def resolve_memory(owner: str, memory: str | None, with_cp: bool) -> str | None:
    """Return the memory mode of the blocks of ``owner`` from its arguments ``memory`` and ``with_cp``.

    Raises:
        UserError: There is no such mode, or the arguments contradict each other.
    """
    if memory is not None and memory not in MEMORY_MODES:
        raise UserError(f'{owner} has no memory={memory!r}: use one of {", ".join(map(repr, MEMORY_MODES))}')
    if with_cp and memory not in (None, 'checkpoint'):
        raise UserError(f"with_cp=True is memory='checkpoint', found memory={memory!r} too: give one of them")
    return 'checkpoint' if with_cp else memory


def _take_samples(x: Tensor, kept: Tensor) -> Tensor:
    """The samples ``kept`` of ``x`` (N, C, H, W), in channels_last memory, which indexing an NCHW tensor would lose."""
    return x.permute(0, 2, 3, 1).index_select(0, kept).permute(0, 3, 1, 2)


def _put_samples(x: Tensor, kept: Tensor, samples: Tensor) -> Tensor:
    """A copy of ``x`` (N, C, H, W) with ``samples`` at the places ``kept``, in channels_last memory."""
    return x.permute(0, 2, 3, 1).index_copy(0, kept, samples.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _any_requires_grad(x: Tensor, params: BlockParameters) -> bool:
    return x.requires_grad or any(param is not None and param.requires_grad for param in params)
