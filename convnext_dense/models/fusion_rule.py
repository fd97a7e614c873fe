"""When a block may run fused: only where nobody could see the difference.

The fused block computes what the parts of a block compute, without calling them. So it runs only where the parts are
exactly the plain classes, nothing is attached to them, and nothing records or transforms the operations. In every other
case the plain block runs, which calls its parts.

Hooks on the block itself, and hooks on state dicts, need no check: the block's own call runs them.

Every call of every block asks all of it, since a hook may change anything between two blocks. The kernels of the block
before leave little of the interpreter in the caches, so each function that the rule calls takes longer than its work.
Therefore it calls few, and reads the dicts of the modules: an attribute that is a parameter is found only behind an
exception. ``tools/dev/benchmark.py rule`` measures what the rule takes of a step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import (
    _are_functorch_transforms_active,
    _autograd,
    _is_tracing,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

from convnext_dense.models.fused_block import BlockParameters
from convnext_dense.models.layers import GRN, DropPath

SWITCH = 'CONVNEXT_DENSE_KERNELS'
# os.environ raises and catches an exception for a variable that is not set; the dict inside is 30 times as fast.
if hasattr(os.environ, '_data'):
    _VARIABLES: Mapping[Any, Any] = os.environ._data
    _SWITCH, _EAGER = os.environ.encodekey(SWITCH), os.environ.encodevalue('eager')
else:
    _VARIABLES, _SWITCH, _EAGER = os.environ, SWITCH, 'eager'

# The parts of a block of V1: each with the class that the fused block stands for, and the parameters that it takes.
PARTS_V1: tuple[tuple[str, type[nn.Module], tuple[str, ...]], ...] = (
    ('dwconv', nn.Conv2d, ('weight', 'bias')),
    ('norm', nn.LayerNorm, ('weight', 'bias')),
    ('pwconv1', nn.Linear, ('weight', 'bias')),
    ('act', nn.GELU, ()),
    ('grn', nn.Identity, ()),
    ('pwconv2', nn.Linear, ('weight', 'bias')),
    ('drop_path', DropPath, ()),
)
PARTS_V2 = tuple(('grn', GRN, ('gamma', 'beta')) if part[0] == 'grn' else part for part in PARTS_V1)
PLAIN_TENSORS = (nn.Parameter, Tensor)  # FSDP puts tensors in the place of parameters
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# torch's dicts of hooks on every module, which it changes in place. Those on a registration are called in any case.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = tuple(
    value
    for name, value in vars(torch_modules).items()
    if name.startswith('_global_') and 'hooks' in name and 'registration' not in name
)
# Older versions of torch cannot be asked what records their operations: there the plain block runs.
TORCH_CAN_BE_ASKED = hasattr(_autograd, '_top_saved_tensors_default_hooks') and hasattr(
    _python_dispatch, 'is_in_torch_dispatch_mode'
)
if TORCH_CAN_BE_ASKED:
    from torch._C import _is_any_autocast_enabled
    from torch._C._autograd import _top_saved_tensors_default_hooks
    from torch.compiler import is_dynamo_compiling


def what_to_fuse(block: nn.Module, x: Tensor) -> tuple[BlockParameters, torch.dtype] | None:
    """Return what the fused block computes with, or None where the plain block has to run.

    Args:
        block: A :class:`convnext_dense.models.block.Block`.
        x: Its input.

    Returns:
        The parameters of the block, and the type to compute in.
    """
    if _operations_are_recorded() or type(x) not in PLAIN_TENSORS or not x.nbytes:
        return None
    on_cpu = x.is_cpu
    if not on_cpu and (not x.is_cuda or block.memory is None):
        return None  # on GPUs the fused block has not been measured: it runs there where its memory mode was asked for
    if _SWITCH in _VARIABLES and _VARIABLES[_SWITCH] == _EAGER:
        return None
    params = plain_parameters(block)
    if params is None:
        return None

    # All parameters must be plain, of one type and on one device.
    dtype = params.dwconv_weight.dtype
    for param in params:
        if param is None:
            continue
        if type(param) not in PLAIN_TENSORS or param.dtype is not dtype or param.is_cpu is not on_cpu:
            return None
        if param._backward_hooks or param._post_accumulate_grad_hooks:
            return None
        if not on_cpu and param.device != x.device:
            return None
    if _is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        half = torch.get_autocast_dtype(x.device.type)
        return (params, half) if dtype is torch.float32 and x.dtype in (dtype, half) else None
    return (params, dtype) if x.dtype is dtype and dtype in FLOATING else None


def _operations_are_recorded() -> bool:
    """Whether a tracer, a transform or a counter must see the operations or the tensors of the plain block.

    ``torch.export`` without dynamo, ``make_fx`` and counters are modes of dispatch.
    """
    if not TORCH_CAN_BE_ASKED or is_dynamo_compiling() or _is_tracing():
        return True
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if _len_torch_dispatch_stack() or any(GLOBAL_HOOKS):
        return True
    if _len_torch_function_stack():
        for mode in _get_current_function_mode_stack():
            if not isinstance(mode, DeviceContext):  # torch.set_default_device records nothing
                return True
    hooks = _top_saved_tensors_default_hooks(True)
    # Those of torch's checkpointing compute the block again as it was; others look at what the plain block saves.
    return hooks is not None and getattr(hooks[0], '__module__', None) != 'torch.utils.checkpoint'


def plain_parameters(block: nn.Module) -> BlockParameters | None:
    """Return the parameters of a block whose parts are plain, or None where one is not.

    A part is plain if it is of the plain class, if its ``forward`` alone is what a call of it runs, and if it computes
    what the fused block does.

    Args:
        block: A :class:`convnext_dense.models.block.Block`.
    """
    parts: dict[str, Any] = block._modules
    params: list[Tensor | None] = []
    for name, plain_class, parameters in PARTS_V2 if type(parts['grn']) is GRN else PARTS_V1:
        part = parts[name]
        if type(part) is not plain_class:
            return None
        attributes = part.__dict__
        if (
            attributes['_forward_hooks']
            or attributes['_forward_pre_hooks']
            or attributes['_backward_hooks']
            or attributes['_backward_pre_hooks']
            or 'forward' in attributes
        ):
            return None
        if parameters:
            registered = attributes['_parameters']
            for parameter in parameters:
                # FSDP stores a tensor of the same name beside the dict of parameters.
                param = attributes[parameter] if parameter in attributes else registered.get(parameter)
                if param is None:
                    return None
                params.append(param)
        elif plain_class is nn.Identity:
            params += (None, None)  # gamma and beta of a GRN that is not there

    # A depthwise convolution with a square kernel, and zeros around the image that keep its size.
    conv = parts['dwconv'].__dict__
    (height, width), padding, dilation = conv['kernel_size'], conv['padding'], conv['dilation']
    if (
        conv['stride'] != (1, 1)
        or conv['padding_mode'] != 'zeros'
        or type(padding) is not tuple
        or height != width
        or padding[0] != padding[1]
        or dilation[0] != dilation[1]
        or padding[0] * 2 != dilation[0] * (height - 1)
        or not conv['groups'] == conv['in_channels'] == conv['out_channels']
    ):
        return None
    if len(parts['norm'].__dict__['normalized_shape']) != 1 or parts['act'].__dict__['approximate'] != 'none':
        return None

    attributes = block.__dict__
    stored = attributes if 'gamma' in attributes else attributes['_parameters']
    if 'gamma' not in stored:  # a buffer, say
        return None
    params.append(stored['gamma'])
    return tuple.__new__(BlockParameters, params)  # as its _make does, without a call in between


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is running, in which memory formats and saved-tensor hooks do not exist."""
    return _are_functorch_transforms_active()
