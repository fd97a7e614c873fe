"""Segmentors of mmseg whose decode head makes one map of logits: FCN, PSP, UperNet, ASPP, DeepLabV3+ and others."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_dense.export.whole import WholeModel, family, overridden


class AdaptiveAveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, whose weights follow from the size of the input.

    The exporter bakes the size of the example into ``nn.AdaptiveAvgPool2d``.
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.rows, self.columns = _pair(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, rows, columns)."""
        if self.rows == self.columns == 1:
            return x.mean((2, 3), keepdim=True)
        by_rows = averaging_weights(self.rows, x.shape[2], x)  # (rows, H)
        by_columns = averaging_weights(self.columns, x.shape[3], x)  # (columns, W)
        return by_rows @ x @ by_columns.T


def averaging_weights(bins: int, length: int, like: Tensor) -> Tensor:
    """Return the matrix (bins, length) of an adaptive average: bin i covers floor(i l / b) to ceil((i + 1) l / b)."""
    position = torch.arange(length, device=like.device)[None]
    index = torch.arange(bins, device=like.device)[:, None]
    start = index * length // bins
    end = ((index + 1) * length + bins - 1) // bins
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class UpsampleBy(nn.Module):
    """``mmseg.models.utils.Upsample`` by a factor: into it the exporter bakes the size of the example.

    Args:
        factor: Of height and width.
        mode, align_corners: As in ``F.interpolate``.
    """

    def __init__(self, factor: float, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor = factor
        self.mode = mode
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, factor * H, factor * W), rounded down."""
        size = []
        for side in x.shape[-2:]:
            size.append(torch.sym_int(side * self.factor))
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def free_of_sizes(part: nn.Module) -> nn.Module:
    """Return ``part`` with other modules in the place of those that would keep the size of the example.

    If there is one, it is a copy that shares the tensors: the toolkit's own model stays what it is.
    """
    if not any(_free_of_size(module) for module in part.modules()):
        return part
    tensors = {id(tensor): tensor for tensor in (*part.parameters(), *part.buffers())}
    part = copy.deepcopy(part, tensors)
    for parent in list(part.modules()):
        for name, child in parent.named_children():
            replacement = _free_of_size(child)
            if replacement is not None:
                setattr(parent, name, replacement)
    return part


def _free_of_size(module: Any) -> nn.Module | None:
    if isinstance(module, nn.AdaptiveAvgPool2d) and None not in _pair(module.output_size):
        return AdaptiveAveragePool(module.output_size)
    cls = type(module)
    if cls.__name__ == 'Upsample' and cls.__module__.startswith('mmseg.') and isinstance(module.scale_factor, float):
        factor = int(module.scale_factor) if module.scale_factor.is_integer() else module.scale_factor
        return UpsampleBy(factor, module.mode, module.align_corners)
    return None


@family
class Segmentor(WholeModel):
    """An ``EncoderDecoder`` of mmseg.

    Outputs ``labels`` (N, H, W) int32, and ``logits`` (N, classes, H, W) float32 for whoever resizes or averages
    before the decision, as the runner does for another size of the original and for the sliding window.
    """

    output_names = ('labels', 'logits')
    task = 'segmentation'

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.backbone = free_of_sizes(self.backbone)
        self.neck = None if self.neck is None else free_of_sizes(self.neck)
        head: Any = free_of_sizes(model.decode_head)
        self.decode_head: Any = head
        self.align_corners = bool(head.align_corners)
        self.threshold: Any = getattr(head, 'threshold', None)

    @classmethod
    def refusal(cls, model: Any) -> str | None:
        encoder_decoder = 'EncoderDecoder'
        methods = dict.fromkeys(('predict', 'encode_decode', 'extract_feat', 'slide_inference'), encoder_decoder)
        reason = overridden(model, {**methods, 'postprocess_result': 'BaseSegmentor'})
        if reason is not None:
            return reason
        return overridden(model.decode_head, dict.fromkeys(('predict', 'predict_by_feat'), 'BaseDecodeHead'))

    @classmethod
    def settings(cls, model: Any) -> dict[str, Any]:
        test_cfg: Any = model.test_cfg
        settings: dict[str, Any] = dict(
            mode=test_cfg.get('mode', 'whole'),
            align_corners=bool(model.align_corners),
            binary_threshold=model.decode_head.threshold if model.decode_head.out_channels == 1 else None,
        )
        if settings['mode'] == 'slide':
            settings.update(crop_size=list(test_cfg.crop_size), stride=list(test_cfg.stride))
        return settings

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> labels (N, H, W) and logits (N, classes, H, W)."""
        height, width = image.shape[-2:]
        padded = self.normalised(image)
        features = self.backbone(padded)
        if self.neck is not None:
            features = self.neck(features)
        logits = self.decode_head(features)
        logits = F.interpolate(logits, padded.shape[-2:], mode='bilinear', align_corners=self.align_corners)
        logits = logits[:, :, :height, :width]
        if logits.shape[1] == 1:
            labels = (logits[:, 0].sigmoid() > self.threshold).to(torch.int32)
        else:
            labels = logits.argmax(1).to(torch.int32)
        return labels, logits


def _pair(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value, value)
