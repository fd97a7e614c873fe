"""The residual branch of a block as one autograd function: less memory and, on CPUs, faster kernels.

It computes what :func:`convnext_dense.models.block.residual_branch` computes, in another order::

    u = dwconv(x)                                        depthwise convolution
    h = LayerNorm(u) @ W1.T + b1                         (tokens, 4C), the hidden layer
    a = GELU(h)
    a = a * (1 + grn_gamma * response) + grn_beta        ConvNeXt V2 only
    branch = scale * gamma * (a @ W2.T + b2)

- ``gamma``, ``grn_beta`` and the scale of stochastic depth are folded into the second Linear, so that neither its
  output nor those of GELU, GRN and LayerNorm are saved for the backward pass. It saves ``x``, ``u`` and ``h``: 12 bytes
  per token and channel in bf16, where plain autograd saves 24. ``memory='lean'`` saves ``x`` and ``u`` (4 bytes) and
  computes ``h`` again; ``memory='checkpoint'`` saves ``x`` as it came, to compute everything again: 4 bytes, but 2 in
  the first block of a stage, whose input is not yet the fp32 sum.
- The hidden layer is computed in parts that fit the cache of a CPU (:mod:`convnext_dense.models.cpu_operators`).
- A second derivative differentiates the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_dense.models.cpu_operators import depthwise_weight_grad, linear, linear_weight_grad, pack, token_parts


class BlockParameters(NamedTuple):
    """The parameters of one block, in the order in which it uses them; those that it does not have are None."""

    dwconv_weight: Tensor  # (C, 1, k, k)
    dwconv_bias: Tensor  # (C,), as the others without a comment
    norm_weight: Tensor
    norm_bias: Tensor
    pwconv1_weight: Tensor  # (4C, C)
    pwconv1_bias: Tensor  # (4C,)
    grn_gamma: Tensor | None  # (4C,)
    grn_beta: Tensor | None  # (4C,)
    pwconv2_weight: Tensor  # (C, 4C)
    pwconv2_bias: Tensor
    gamma: Tensor | None


class BlockOptions(NamedTuple):
    """What a block computes beside its parameters.

    Attributes:
        norm_eps: Of LayerNorm.
        grn_eps: Of GRN.
        padding: Of the depthwise convolution, on each side.
        dilation: Of the depthwise convolution.
        scale: Factor of the branch: ``1 / (1 - rate)`` of stochastic depth.
        dtype: What to compute in; the residual sum and the parameters keep theirs.
        memory: What to save for the backward pass: ``'default'``, ``'lean'`` or ``'checkpoint'``, see above.
    """

    norm_eps: float
    grn_eps: float
    padding: int
    dilation: int
    scale: float
    dtype: torch.dtype
    memory: str


class FoldedParameters(NamedTuple):
    """Parameters in the type to compute in; gamma, grn_beta and the scale are folded into the second Linear."""

    dwconv_weight: Tensor
    dwconv_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    pwconv1_weight: Tensor
    pwconv1_bias: Tensor
    grn_gamma: Tensor | None
    pwconv2_weight: Tensor
    pwconv2_bias: Tensor


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass, each in the type to compute in.

    Attributes:
        u: (N, H, W, C), output of the depthwise convolution; None where it is computed again.
        hidden: Outputs of the first Linear, one (tokens, 4C) per part of :func:`_parts`; None where computed again.
        energy: (N, 4C) of GRN, in fp32 or more; None without GRN.
    """

    u: Tensor | None
    hidden: list[Tensor] | None
    energy: Tensor | None


def fold(params: BlockParameters, options: BlockOptions) -> FoldedParameters:
    """Cast the parameters to the type to compute in, and fold what scales and shifts the second Linear into it."""
    dtype = options.dtype
    weight, bias = params.pwconv2_weight, params.pwconv2_bias
    if params.grn_beta is not None:
        bias = bias + weight @ params.grn_beta
    if params.gamma is not None:
        factor = options.scale * params.gamma
        weight, bias = weight * factor[:, None], bias * factor
    elif options.scale != 1:
        weight, bias = weight * options.scale, bias * options.scale
    return FoldedParameters(
        dwconv_weight=params.dwconv_weight.to(dtype),
        dwconv_bias=params.dwconv_bias.to(dtype),
        norm_weight=params.norm_weight.to(dtype),
        norm_bias=params.norm_bias.to(dtype),
        pwconv1_weight=params.pwconv1_weight.to(dtype),
        pwconv1_bias=params.pwconv1_bias.to(dtype),
        grn_gamma=None if params.grn_gamma is None else params.grn_gamma.to(dtype),
        pwconv2_weight=weight.to(dtype),
        pwconv2_bias=bias.to(dtype),
    )


def fold_and_pack(params: BlockParameters, options: BlockOptions) -> FoldedParameters:
    """As :func:`fold`, with the weights of both Linears in the order that the fastest library wants."""
    folded = fold(params, options)
    return folded._replace(
        pwconv1_weight=pack(folded.pwconv1_weight),
        pwconv2_weight=pack(folded.pwconv2_weight),
    )


def branch_forward(
    residual: Tensor, inside: Tensor, folded: FoldedParameters, options: BlockOptions, save: bool
) -> tuple[Tensor, Saved]:
    """Compute ``residual + branch(inside)``.

    Args:
        residual: (N, C, H, W) in channels_last memory, of the type of the result.
        inside: (N, C, H, W) in channels_last memory, of the type to compute in.
        folded: Of :func:`fold` or :func:`fold_and_pack`.
        options: Of the block.
        save: Save what ``options.memory`` says.

    Returns:
        (N, C, H, W) in channels_last memory, and what was saved.
    """
    u = _depthwise(inside, folded.dwconv_weight, folded.dwconv_bias, options)
    hidden: list[Tensor] | None = [] if save and options.memory == 'default' else None
    rows = residual.permute(0, 2, 3, 1).flatten(0, 2)  # (N, C, H, W) -> (tokens, C), a view
    tokens = u.flatten(0, 2)  # (N, H, W, C) -> (tokens, C)
    out = torch.empty_like(rows)
    energy = None
    if folded.grn_gamma is None:
        for part in token_parts(len(rows), tokens, keep=save):
            active = _active(tokens[part], folded, options, hidden)
            torch.add(rows[part], linear(active, folded.pwconv2_weight, folded.pwconv2_bias), out=out[part])
    else:
        energy = _forward_with_grn(rows, tokens, folded, options, save, hidden, len(u), out)
    return out.view(u.shape).permute(0, 3, 1, 2), Saved(
        u=u if save and options.memory != 'checkpoint' else None, hidden=hidden, energy=energy
    )


def _forward_with_grn(
    rows: Tensor,
    tokens: Tensor,
    folded: FoldedParameters,
    options: BlockOptions,
    save: bool,
    hidden: list[Tensor] | None,
    images: int,
    out: Tensor,
) -> Tensor:
    """Fill ``out`` image by image: GRN needs the energy of a whole image before the second Linear."""
    assert folded.grn_gamma is not None
    energies = []
    for parts in _parts(images, tokens, save):
        actives = []
        squares = torch.zeros(folded.grn_gamma.shape, dtype=_wide(options.dtype), device=tokens.device)
        for part in parts:
            active = _active(tokens[part], folded, options, hidden)
            squares += _sum_of_squares(active, squares.dtype)
            actives.append(active)
        energy = squares.sqrt_()  # (4C,)
        factor = (1 + folded.grn_gamma * _response(energy, options).to(options.dtype)).to(options.dtype)
        for part, active in zip(parts, actives):
            scaled = active.mul_(factor)
            torch.add(rows[part], linear(scaled, folded.pwconv2_weight, folded.pwconv2_bias), out=out[part])
        energies.append(energy)
    return torch.stack(energies)


def branch_backward(
    grad_out: Tensor, inside: Tensor, saved: Saved, params: BlockParameters, options: BlockOptions
) -> tuple[Tensor, BlockParameters]:
    """Compute the gradients of ``branch(inside)``.

    Args:
        grad_out: (N, C, H, W), gradient of the branch, of any type.
        inside: As in :func:`branch_forward`.
        saved: Of :func:`branch_forward`.
        params: The parameters, in their own types.
        options: Of the block.

    Returns:
        Gradients of ``inside`` (N, C, H, W) and of each parameter, in their types.
    """
    dtype = options.dtype
    folded = fold(params, options)
    u = saved.u
    if u is None:
        u = _depthwise(inside, folded.dwconv_weight, folded.dwconv_bias, options)
    grad = grad_out.to(dtype).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # (N, H, W, C)
    normed, mean, rstd = torch.native_layer_norm(
        u, folded.norm_weight.shape, folded.norm_weight, folded.norm_bias, options.norm_eps
    )
    sums = _WeightSums()
    grad_tokens, normed_tokens = grad.flatten(0, 2), normed.flatten(0, 2)
    if folded.grn_gamma is None:
        grad_parts = _backward_without_grn(grad_tokens, normed_tokens, folded, saved.hidden, sums)
    else:
        grad_parts = _backward_with_grn(grad_tokens, normed_tokens, folded, saved, options, sums, len(u))
    grad_normed = (grad_parts[0] if len(grad_parts) == 1 else torch.cat(grad_parts)).view_as(u)
    grad_u, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
        grad_normed, u, folded.norm_weight.shape, mean, rstd, folded.norm_weight, folded.norm_bias, [True, True, True]
    )
    grad_u = grad_u.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    grad_inside, _, _ = torch.ops.aten.convolution_backward(
        grad_u,
        inside,
        folded.dwconv_weight,
        None,
        [1, 1],
        [options.padding] * 2,
        [options.dilation] * 2,
        False,
        [0, 0],
        inside.shape[1],
        [True, False, False],
    )
    grad_dwconv_weight, grad_dwconv_bias = depthwise_weight_grad(
        inside, grad_u, folded.dwconv_weight, options.padding, options.dilation
    )
    grad_bias2 = grad_tokens.sum(0, dtype=_wide(dtype))  # of the folded second Linear
    assert sums.weight1 is not None and sums.bias1 is not None and sums.weight2 is not None
    second = _unfold(sums.weight2, grad_bias2, params, options.scale)
    grads = BlockParameters(
        dwconv_weight=grad_dwconv_weight.contiguous(),
        dwconv_bias=grad_dwconv_bias,
        norm_weight=grad_norm_weight,
        norm_bias=grad_norm_bias,
        pwconv1_weight=sums.weight1,
        pwconv1_bias=sums.bias1,
        grn_gamma=sums.grn_gamma,
        grn_beta=second.grn_beta,
        pwconv2_weight=second.weight,
        pwconv2_bias=second.bias,
        gamma=second.gamma,
    )
    cast: list[Tensor | None] = []
    for grad_param, param in zip(grads, params):
        cast.append(None if grad_param is None or param is None else grad_param.to(param.dtype))
    return grad_inside, BlockParameters._make(cast)


class _SecondLinear(NamedTuple):
    """Gradients of what :func:`fold` puts into the second Linear."""

    weight: Tensor
    bias: Tensor
    gamma: Tensor | None
    grn_beta: Tensor | None


def _unfold(grad_weight: Tensor, grad_bias: Tensor, params: BlockParameters, scale: float) -> _SecondLinear:
    """Gradients of the parameters from those of the folded weight and bias.

    It never divides by gamma, which may be 0. ``grad_weight`` holds sums over ``a`` before ``grn_beta`` was added.
    """
    weight, bias = params.pwconv2_weight, params.pwconv2_bias
    grad_weight, grad_bias = grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
    grad_grn_beta = None
    if params.grn_beta is not None:
        grad_weight = grad_weight + torch.outer(grad_bias, params.grn_beta)
    grad_gamma = None
    if params.gamma is not None:
        grad_gamma = scale * (torch.linalg.vecdot(weight, grad_weight) + bias * grad_bias)
        grad_weight = grad_weight * (scale * params.gamma)[:, None]
        grad_bias = grad_bias * (scale * params.gamma)
    elif scale != 1:
        grad_weight, grad_bias = grad_weight * scale, grad_bias * scale
    if params.grn_beta is not None:
        grad_grn_beta = grad_bias @ weight
    return _SecondLinear(grad_weight, grad_bias, grad_gamma, grad_grn_beta)


class _WeightSums:
    """Gradients of the weights of the hidden layer, summed over the parts of the tokens in more than a half type."""

    weight1: Tensor | None = None  # (4C, C)
    bias1: Tensor | None = None  # (4C,)
    weight2: Tensor | None = None  # (C, 4C), of the folded second Linear
    grn_gamma: Tensor | None = None  # (4C,)

    def add(self, **parts: Tensor) -> None:
        for name, part in parts.items():
            total = getattr(self, name)
            if total is None:
                setattr(self, name, part.to(_wide(part.dtype)))
            else:
                total.add_(part)


def _backward_without_grn(
    grad_tokens: Tensor,
    normed_tokens: Tensor,
    folded: FoldedParameters,
    hidden: list[Tensor] | None,
    sums: _WeightSums,
) -> list[Tensor]:
    """Return the gradient of the normalised tokens, part by part; add those of the weights to ``sums``."""
    grad_parts = []
    for number, part in enumerate(token_parts(len(grad_tokens), grad_tokens, keep=True)):
        normed, grad = normed_tokens[part], grad_tokens[part]
        before = hidden[number] if hidden else linear(normed, folded.pwconv1_weight, folded.pwconv1_bias)
        grad_active = linear(grad, folded.pwconv2_weight.t())
        grad_before = torch.ops.aten.gelu_backward(grad_active, before)
        sums.add(
            weight2=linear_weight_grad(F.gelu(before), grad),
            weight1=linear_weight_grad(normed, grad_before),
            bias1=grad_before.sum(0, dtype=_wide(grad_before.dtype)),
        )
        grad_parts.append(linear(grad_before, folded.pwconv1_weight.t()))
    return grad_parts


def _backward_with_grn(
    grad_tokens: Tensor,
    normed_tokens: Tensor,
    folded: FoldedParameters,
    saved: Saved,
    options: BlockOptions,
    sums: _WeightSums,
    images: int,
) -> list[Tensor]:
    """As :func:`_backward_without_grn`, image by image.

    Let ``S`` be the sum over tokens of (gradient of GRN's output) * a, one value per channel of the hidden layer. The
    gradient of GRN's response is ``grn_gamma * S``. ``S`` needs no pass of its own: it is the sum over rows of
    ``W2 * P`` with ``P = grad.T @ a``, which the gradient of ``W2`` needs anyway.
    """
    assert folded.grn_gamma is not None and saved.energy is not None
    grad_parts = []
    number = 0
    for energy, parts in zip(saved.energy, _parts(images, grad_tokens, True)):
        before_parts = []
        products: Tensor | None = None  # P, (C, 4C)
        for part in parts:
            if saved.hidden:
                before = saved.hidden[number]
            else:
                before = linear(normed_tokens[part], folded.pwconv1_weight, folded.pwconv1_bias)
            number += 1
            product = linear_weight_grad(F.gelu(before), grad_tokens[part]).to(energy.dtype)
            products = product if products is None else products.add_(product)
            before_parts.append(before)
        assert products is not None
        response = _response(energy, options)
        sum_active = (products * folded.pwconv2_weight.to(energy.dtype)).sum(0)  # S, (4C,)
        grad_energy = _response_backward(folded.grn_gamma.to(energy.dtype) * sum_active, energy, options)
        # d energy / d a = a / energy; 0 where a channel of the image is 0 everywhere.
        pull = torch.where(energy > 0, grad_energy / energy, 0.0).to(options.dtype)
        factor = (1 + folded.grn_gamma * response.to(options.dtype)).to(options.dtype)
        sums.add(weight2=products * factor.to(energy.dtype), grn_gamma=response * sum_active)
        weight2 = folded.pwconv2_weight * factor
        for part, before in zip(parts, before_parts):
            grad_active = linear(grad_tokens[part], weight2.t())
            grad_active.addcmul_(F.gelu(before), pull)
            grad_before = torch.ops.aten.gelu_backward(grad_active, before)
            sums.add(
                weight1=linear_weight_grad(normed_tokens[part], grad_before),
                bias1=grad_before.sum(0, dtype=energy.dtype),
            )
            grad_parts.append(linear(grad_before, folded.pwconv1_weight.t()))
    return grad_parts


def _sum_of_squares(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(tokens, 4C) -> (4C,) in a wider type. ``vector_norm`` over tokens takes six times as long on a CPU."""
    wide = x.to(dtype)
    squares = x * x if wide is x else wide.mul_(wide)
    return squares.sum(0)


def _response(energy: Tensor, options: BlockOptions) -> Tensor:
    """GRN's response (4C,) of one image to its energy (4C,)."""
    return energy / (energy.mean() + options.grn_eps)


def _response_backward(grad: Tensor, energy: Tensor, options: BlockOptions) -> Tensor:
    """Gradient of the energy (4C,) from that of the response (4C,)."""
    mean = energy.mean() + options.grn_eps
    return grad / mean - (grad * energy).mean() / mean.square()


def _parts(images: int, tokens: Tensor, keep: bool) -> list[list[slice]]:
    """For each image, the parts of its tokens to compute at once; as :func:`token_parts`."""
    per_image = len(tokens) // images
    parts = token_parts(per_image, tokens, keep)
    return [
        [slice(image * per_image + part.start, image * per_image + part.stop) for part in parts]
        for image in range(images)
    ]


def _active(tokens: Tensor, folded: FoldedParameters, options: BlockOptions, hidden: list[Tensor] | None) -> Tensor:
    """LayerNorm, first Linear and GELU: (tokens, C) -> (tokens, 4C); saves the Linear's output in ``hidden``."""
    normed = F.layer_norm(tokens, folded.norm_weight.shape, folded.norm_weight, folded.norm_bias, options.norm_eps)
    if hidden is None:
        return linear(normed, folded.pwconv1_weight, folded.pwconv1_bias, gelu=True)
    hidden.append(linear(normed, folded.pwconv1_weight, folded.pwconv1_bias))
    return F.gelu(hidden[-1])


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, options: BlockOptions) -> Tensor:
    """(N, C, H, W) in channels_last memory -> (N, H, W, C)."""
    y = F.conv2d(x, weight, bias, padding=options.padding, dilation=options.dilation, groups=x.shape[1])
    return y.permute(0, 2, 3, 1).contiguous()  # free of a copy where the convolution kept channels_last


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type for sums over tokens: fp32 for half types."""
    return torch.promote_types(dtype, torch.float32)


class FusedBranch(torch.autograd.Function):
    """``residual + branch(inside)`` with the gradients of :func:`branch_backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        inside: Tensor,
        options: BlockOptions,
        plain_branch: Callable[[Tensor, BlockParameters, BlockOptions], Tensor],
        *params: Tensor | None,
    ) -> Tensor:
        ctx.options, ctx.plain_branch = options, plain_branch
        if not len(inside):  # every sample was dropped
            ctx.num_hidden = 0
            ctx.save_for_backward(inside, None, None, *params)
            return residual.clone()
        with torch.autocast(inside.device.type, enabled=False):
            folded = fold(BlockParameters._make(params), options)
            out, saved = branch_forward(residual, inside, folded, options, save=True)
        hidden = saved.hidden or []
        ctx.num_hidden = len(hidden)
        ctx.save_for_backward(inside, saved.u, saved.energy, *params, *hidden)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        inside, u, energy, *rest = ctx.saved_tensors
        params = BlockParameters._make(rest[: len(BlockParameters._fields)])
        hidden = rest[len(BlockParameters._fields) :]
        with torch.autocast(inside.device.type, enabled=False):
            if torch.is_grad_enabled():
                grad_inside, grads = _differentiable_backward(ctx, grad_out, inside, params)
            elif not len(inside):  # DDP waits for a gradient of every parameter
                zeros = (None if param is None else torch.zeros_like(param) for param in params)
                grad_inside, grads = torch.zeros_like(inside), BlockParameters._make(zeros)
            else:
                saved = Saved(u, hidden or None, energy)
                grad_inside, grads = branch_backward(grad_out, inside, saved, params, ctx.options)
        return grad_out, grad_inside, None, None, *grads


def _differentiable_backward(
    ctx: Any, grad_out: Tensor, inside: Tensor, params: BlockParameters
) -> tuple[Tensor | None, BlockParameters]:
    """Gradients that can be differentiated again, through the plain formula."""
    branch = ctx.plain_branch(inside, params, ctx.options)
    wanted = [tensor for tensor in (inside, *params) if tensor is not None and tensor.requires_grad]
    found = torch.autograd.grad(
        branch, wanted, grad_out.to(branch.dtype), create_graph=True, allow_unused=True, materialize_grads=True
    )
    by_identity = {id(tensor): grad for tensor, grad in zip(wanted, found)}
    grads = BlockParameters._make(by_identity.get(id(param)) for param in params)
    return by_identity.get(id(inside)), grads
