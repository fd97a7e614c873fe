"""When a block may run fused: only where nobody could see the difference.

The fused block computes what the parts of a block compute, without calling them. So it runs only where the parts are
exactly the plain classes, nothing is attached to them, and nothing records or transforms the operations. In every other
case the plain block runs, which calls its parts.

Hooks on the block itself, and hooks on state dicts, need no check: the block's own call runs them.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _autograd, _functorch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

from convnext_dense.models.fused_block import BlockParameters
from convnext_dense.models.layers import GRN, DropPath

SWITCH = 'CONVNEXT_DENSE_KERNELS'
# The parts of a block and the classes that the fused block stands for.
PART_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    'dwconv': (nn.Conv2d,),
    'norm': (nn.LayerNorm,),
    'pwconv1': (nn.Linear,),
    'act': (nn.GELU,),
    'grn': (nn.Identity, GRN),
    'pwconv2': (nn.Linear,),
    'drop_path': (DropPath,),
}
WITH_BIAS = ('dwconv', 'norm', 'pwconv1', 'pwconv2')
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
PLAIN_TENSORS = (nn.Parameter, Tensor)  # FSDP puts tensors in the place of parameters


def compute_dtype(block: nn.Module, x: Tensor, params: BlockParameters) -> torch.dtype | None:
    """Return the type that the fused block computes in, or None where the plain block has to run.

    Args:
        block: A :class:`convnext_dense.models.block.Block` whose :func:`parts_are_plain`.
        x: Its input.
        params: Its parameters.
    """
    if type(x) not in PLAIN_TENSORS or not _device_is_fused(block, x) or not x.numel() or _operations_are_recorded():
        return None
    return _common_dtype(x, params)


def _device_is_fused(block: nn.Module, x: Tensor) -> bool:
    if os.environ.get(SWITCH) == 'eager':
        return False
    # On GPUs the fused block has not been measured: it runs there where its memory mode was asked for.
    return x.is_cpu or (x.is_cuda and block.memory is not None)


def _operations_are_recorded() -> bool:
    """Whether a tracer, a transform or a counter must see the operations or the tensors of the plain block."""
    if not TORCH_CAN_BE_ASKED or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if _python_dispatch.is_in_torch_dispatch_mode() or forward_ad._current_level >= 0:
        return True
    if is_transformed() or any(GLOBAL_HOOKS):
        return True
    for mode in _get_current_function_mode_stack():
        if not isinstance(mode, DeviceContext):  # torch.set_default_device records nothing
            return True
    hooks = _autograd._top_saved_tensors_default_hooks(True)
    # Those of torch's checkpointing compute the block again as it was; others look at what the plain block saves.
    return hooks is not None and getattr(hooks[0], '__module__', None) != 'torch.utils.checkpoint'


def parts_are_plain(block: nn.Module) -> bool:
    """Whether every part is of the plain class and its ``forward`` alone is what a call of it runs."""
    parts: dict[str, Any] = block._modules
    for name, classes in PART_CLASSES.items():
        part = parts[name]
        if type(part) not in classes:
            return False
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return False
        if 'forward' in part.__dict__ or (name in WITH_BIAS and part.bias is None):
            return False
    conv, norm, act = parts['dwconv'], parts['norm'], parts['act']
    height, width = conv.kernel_size
    return bool(
        conv.stride == (1, 1)
        and height == width
        and conv.padding_mode == 'zeros'
        and type(conv.padding) is tuple
        and conv.padding[0] == conv.padding[1]
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding[0] * 2 == conv.dilation[0] * (height - 1)
        and conv.groups == conv.in_channels == conv.out_channels
        and len(norm.normalized_shape) == 1
        and act.approximate == 'none'
    )


def _common_dtype(x: Tensor, params: BlockParameters) -> torch.dtype | None:
    """The type to compute in, where all parameters are plain, on one device and of one type."""
    device = x.device
    dtype = params.dwconv_weight.dtype
    for param in params:
        if param is None:
            continue
        if type(param) not in PLAIN_TENSORS or param.dtype != dtype or param.device != device:
            return None
        if param._backward_hooks or param._post_accumulate_grad_hooks:
            return None
    if torch.is_autocast_enabled(device.type):
        half = torch.get_autocast_dtype(device.type)
        return half if dtype == torch.float32 and x.dtype in (dtype, half) else None
    return dtype if dtype == x.dtype and dtype.is_floating_point else None


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is running, in which memory formats and saved-tensor hooks do not exist."""
    return _functorch.peek_interpreter_stack() is not None
