"""Under which numeric conditions the operators compute, and how they reach torchvision's."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from convnext_dense.errors import UserError

P = ParamSpec('P')
R = TypeVar('R')


def operator(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` like a kernel: without gradients, and with the types it chooses whatever autocast says."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            return function(*args, **kwargs)

    return run


def wide(tensor: Tensor) -> Tensor:
    """Half types as fp32: too few bits for coordinates and sums. fp32 and fp64 stay as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def fill_if_not_finite(coordinates: Tensor, *results: Tensor) -> bool:
    """Fill all results with NaN and return True if coordinates are infinite or no numbers.

    Kernels for CPUs, torchvision's as mmcv's, turn them into integers that C++ does not define and read there: a
    training that diverges ends in a segmentation fault instead of a loss of NaN. CUDA takes such a number for 0.
    Exported and compiled graphs have no such branch.
    """
    if coordinates.device.type != 'cpu' or torch.compiler.is_compiling() or bool(coordinates.isfinite().all()):
        return False
    for result in results:
        result.fill_(math.nan)
    return True


def as_c_float(value: float) -> float:
    """Round like a C ``float``, in which mmcv passes its thresholds: 0.6 becomes 0.60000002."""
    return struct.unpack('f', struct.pack('f', value))[0]


def torchvision_operators() -> torch._ops._OpNamespace:
    """torchvision's operators, imported when the first of them runs.

    Raises:
        UserError: torchvision is not installed.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != 'torchvision':
            raise
        raise UserError(
            'RoIAlign, NMS and deformable convolution are those of torchvision where mmcv is not compiled, and '
            'torchvision is not installed: pip install torchvision'
        ) from error
    return torch.ops.torchvision
