"""What the module ``mmcv._ext`` holds: our operators under the names and with the arguments of the compiled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from convnext_dense.errors import UserError
from convnext_dense.mmcv_ops import boxes, deform, losses, reassembly, roi, sync_bn


def get_compiler_version() -> str:
    """What mmcv reports in its table of the environment."""
    return 'none (operators of torchvision and torch)'


def get_compiling_cuda_version() -> str:
    """The CUDA of torch, whose kernels run, or the words of an mmcv that was built without CUDA."""
    return torch.version.cuda or 'not available'


OPERATORS: dict[str, Callable[..., Any]] = {
    operator.__name__: operator
    for operator in (
        get_compiler_version,
        get_compiling_cuda_version,
        boxes.bbox_overlaps,
        boxes.nms,
        boxes.nms_match,
        boxes.softnms,
        deform.deform_conv_backward_input,
        deform.deform_conv_backward_parameters,
        deform.deform_conv_forward,
        deform.modulated_deform_conv_backward,
        deform.modulated_deform_conv_forward,
        deform.ms_deform_attn_backward,
        deform.ms_deform_attn_forward,
        losses.sigmoid_focal_loss_backward,
        losses.sigmoid_focal_loss_forward,
        losses.softmax_focal_loss_backward,
        losses.softmax_focal_loss_forward,
        reassembly.carafe_backward,
        reassembly.carafe_forward,
        reassembly.carafe_naive_backward,
        reassembly.carafe_naive_forward,
        reassembly.masked_col2im_forward,
        reassembly.masked_im2col_forward,
        reassembly.psamask_backward,
        reassembly.psamask_forward,
        roi.deform_roi_pool_backward,
        roi.deform_roi_pool_forward,
        roi.roi_align_backward,
        roi.roi_align_forward,
        roi.roi_pool_backward,
        roi.roi_pool_forward,
        sync_bn.sync_bn_backward_data,
        sync_bn.sync_bn_backward_param,
        sync_bn.sync_bn_forward_mean,
        sync_bn.sync_bn_forward_output,
        sync_bn.sync_bn_forward_var,
    )
}


def left_out(name: str) -> Callable[..., Any]:
    """Give a function in place of the operator ``name``, which is not provided.

    Returns:
        A function that raises a UserError with the name of the operator.

    Raises:
        AttributeError: ``name`` is private, so no operator.
    """
    if name.startswith('_'):
        raise AttributeError(f'module mmcv._ext has no attribute {name}')

    def refuse(*args: object, **kwargs: object) -> None:
        raise UserError(
            f'the operator {name} exists only in a compiled mmcv: build mmcv with '
            '`make MMCV=build install`, or with `python tools/install_mmcv.py`'
        )

    refuse.__name__ = name
    return refuse
