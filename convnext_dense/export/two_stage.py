"""Two-stage detectors of mmdet: Faster, Mask and Cascade R-CNN, with and without masks."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from convnext_dense.export.boxes import (
    REMOVED,
    as_detections,
    best,
    clip,
    coder_refusal,
    decode,
    flatten_level,
    image_limit,
    nms_refusal,
    nms_threshold,
    suppress,
    take,
    without_small,
)
from convnext_dense.export.whole import WholeModel, family, overridden


@family
class TwoStageDetector(WholeModel):
    """A ``TwoStageDetector`` of mmdet with an ``RPNHead`` and a standard or a cascade RoI head.

    Outputs ``boxes`` (N, K, 4) in pixels of the input, ``scores`` (N, K), ``labels`` (N, K) int32 and, with a mask
    head, ``masks`` (N, K, side, side): probabilities of the label over the box. K is ``rcnn.max_per_img``; what is
    missing has score 0 and label -1.
    """

    task = 'detection'
    score_threshold: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.rpn = RegionProposals(model.rpn_head, model.test_cfg['rpn'])
        head: Any = model.roi_head
        cascade = isinstance(head.bbox_head, nn.ModuleList)
        self.box_heads = head.bbox_head if cascade else nn.ModuleList([head.bbox_head])
        self.box_pools = nn.ModuleList(map(RoIPool, _as_list(head.bbox_roi_extractor)))
        self.has_masks = bool(head.with_mask)
        if self.has_masks:
            self.mask_heads = head.mask_head if cascade else nn.ModuleList([head.mask_head])
            self.mask_pools = nn.ModuleList(map(RoIPool, _as_list(head.mask_roi_extractor)))
        self.shared_head: Any = head.shared_head if head.with_shared_head else None
        settings: Any = model.test_cfg['rcnn']
        self.register_buffer('score_threshold', torch.tensor(float(settings['score_thr'])))
        self.nms_iou = nms_threshold(settings['nms'])
        self.across_classes = bool(settings['nms'].get('class_agnostic', False))
        self.max_detections = int(settings['max_per_img'])
        self.output_names = ('boxes', 'scores', 'labels', 'masks')[: 4 if self.has_masks else 3]

    @classmethod
    def refusal(cls, model: Any) -> str | None:
        reason = overridden(model, dict.fromkeys(('predict', 'extract_feat'), 'TwoStageDetector'))
        if reason is not None:
            return reason
        if not model.with_rpn:
            return 'it has no RPN, its proposals come with the data'
        head: Any = model.roi_head
        kind = 'CascadeRoIHead' if isinstance(getattr(head, 'bbox_head', None), nn.ModuleList) else 'StandardRoIHead'
        own = ['_bbox_forward', 'predict_bbox', *(['_refine_roi'] if kind == 'CascadeRoIHead' else [])]
        if getattr(head, 'with_mask', False):
            own += ['_mask_forward', 'predict_mask']
        reason = overridden(head, dict.fromkeys(own, kind) | {'predict': 'BaseRoIHead'})
        if reason is None:
            reason = _rpn_refusal(model.rpn_head, model.test_cfg['rpn'])
        if reason is None:
            settings: Any = model.test_cfg['rcnn']
            reason = nms_refusal(settings['nms'])
            if reason is None and int(settings['max_per_img']) <= 0:
                reason = 'test_cfg.rcnn.max_per_img is no limit, a number of detections was wanted'
        if reason is not None:
            return reason
        for part in _as_list(head.bbox_head):
            methods = dict.fromkeys(('predict_by_feat', '_predict_by_feat_single', 'regress_by_class'), 'BBoxHead')
            reason = reason or overridden(part, methods)
            reason = reason or coder_refusal(part.bbox_coder)
            if part.custom_cls_channels:
                reason = reason or f'the classes of {type(part).__name__} are no plain softmax'
        pools = _as_list(head.bbox_roi_extractor)
        if head.with_mask:
            methods = dict.fromkeys(('predict_by_feat', '_predict_by_feat_single'), 'FCNMaskHead')
            for part in _as_list(head.mask_head):
                reason = reason or overridden(part, methods)
            pools = pools + _as_list(head.mask_roi_extractor)
        for pool in pools:
            reason = reason or overridden(pool, dict.fromkeys(('forward', 'map_roi_levels'), 'SingleRoIExtractor'))
            for layer in pool.roi_layers:
                if reason is None and not (type(layer).__name__ == 'RoIAlign' and layer.pool_mode == 'avg'):
                    reason = f'its RoI layer is {type(layer).__name__}, an average RoIAlign was wanted'
        return reason

    @classmethod
    def settings(cls, model: Any) -> dict[str, Any]:
        rcnn: Any = model.test_cfg['rcnn']
        settings: dict[str, Any] = dict(score_threshold=float(rcnn['score_thr']))
        if model.roi_head.with_mask:
            settings['mask_threshold'] = float(rcnn['mask_thr_binary'])
        return settings

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> boxes, scores, labels and masks."""
        return self.core(self.normalised(image), image_limit(image))

    def core(self, normalised: Tensor, limit: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the input of the backbone and the limit of the boxes in the image."""
        features = self.features(normalised)
        proposals, objectness = self.rpn(features, limit)  # (N, P, 4), (N, P)
        there = objectness > REMOVED
        rois = as_rois(proposals, there)  # (N P, 5)

        logits = []
        for stage, (head, pool) in enumerate(zip(self.box_heads, self.box_pools, strict=True)):
            classes, deltas = head(self.shared(pool(features, rois)))  # (N P, C + 1), (N P, 4 or 4 C)
            logits.append(classes)
            if stage < len(self.box_heads) - 1:
                label = classes[:, :-1].argmax(1)
                refined = head.regress_by_class(rois[:, 1:], label, deltas, dict(img_shape=None))
                rois = torch.cat([rois[:, :1], clip(head.bbox_coder, refined, limit)], dim=1)
        probability = (sum(logits) / float(len(logits))).softmax(-1)[:, :-1]  # (N P, C)

        boxes, scores, labels = self.detect(rois, probability, deltas, there, limit)
        if not self.has_masks:
            return as_detections(boxes, scores, labels)
        return (*as_detections(boxes, scores, labels), self.segment(features, boxes, labels, scores > REMOVED))

    def detect(
        self, rois: Tensor, probability: Tensor, deltas: Tensor, there: Tensor, limit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, K, 4), scores (N, K) and labels (N, K) after the suppression by class.

        Args:
            rois: (N P, 5).
            probability: (N P, C).
            deltas: (N P, 4), or (N P, 4 C) by class.
            there: (N, P), False for a proposal that is not there.
            limit: Of the boxes in the image.
        """
        batch, count = there.shape
        classes = probability.shape[1]
        head: Any = self.box_heads[-1]
        by_class = 1 if head.reg_class_agnostic else classes
        priors = rois[:, None, 1:].expand(-1, by_class, 4)
        boxes = decode(head.bbox_coder, priors, deltas.reshape(-1, by_class, 4), limit)
        boxes = boxes.reshape(batch, count, by_class, 4).expand(-1, -1, classes, -1).reshape(batch, -1, 4)
        scores = probability.reshape(batch, count, classes)
        chosen = (scores > self.score_threshold) & there[..., None]
        scores = torch.where(chosen, scores, torch.full_like(scores, REMOVED)).reshape(batch, -1)
        labels = torch.arange(classes, device=rois.device).expand(batch, count, -1).reshape(batch, -1)
        groups = torch.zeros_like(labels) if self.across_classes else labels
        kept = suppress(boxes, scores, groups, self.nms_iou, self.max_detections)
        return take(boxes, kept.places), kept.scores, take(labels, kept.places)

    def segment(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        """Return the probabilities (N, K, side, side) of the labels over their boxes, zero where there is no box."""
        rois = as_rois(boxes, there)
        masks = []
        for head, pool in zip(self.mask_heads, self.mask_pools, strict=True):
            masks.append(head(self.shared(pool(features, rois))).sigmoid())  # (N K, C or 1, side, side)
        mask = sum(masks) / float(len(masks))
        if not self.mask_heads[-1].class_agnostic:
            index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, *mask.shape[2:])
            mask = mask.gather(1, index)
        mask = mask.reshape(*labels.shape, *mask.shape[2:])
        return torch.where(there[:, :, None, None], mask, torch.zeros_like(mask))

    def shared(self, pooled: Tensor) -> Tensor:
        return pooled if self.shared_head is None else self.shared_head(pooled)


class RegionProposals(nn.Module):
    """An ``RPNHead`` of mmdet with its postprocessing: as many proposals for every image."""

    def __init__(self, head: Any, settings: Any) -> None:
        super().__init__()
        self.head = head
        self.candidates = int(settings['nms_pre'])
        self.proposals = int(settings['max_per_img'])
        self.nms_iou = nms_threshold(settings['nms'])
        self.min_size = float(settings.get('min_bbox_size', -1))

    def forward(self, features: tuple[Tensor, ...], limit: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, P, 4) and scores (N, P)."""
        head: Any = self.head
        classes, deltas = head(features)
        priors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in classes], dtype=classes[0].dtype, device=classes[0].device
        )
        boxes, scores, levels = [], [], []
        for level in range(len(classes)):
            score = objectness(head, classes[level])  # (N, n)
            score, index = best(score, self.candidates)
            delta = take(flatten_level(deltas[level], 4), index)  # (N, k, 4)
            boxes.append(decode(head.bbox_coder, priors[level][index], delta, limit))
            scores.append(score)
            levels.append(torch.full_like(index, level))
        box, score = torch.cat(boxes, 1), torch.cat(scores, 1)
        score = without_small(score, box, self.min_size)
        kept = suppress(box, score, torch.cat(levels, 1), self.nms_iou, self.proposals)
        return take(box, kept.places), kept.scores


class RoIPool(nn.Module):
    """A ``SingleRoIExtractor`` of mmdet without indices that depend on the data.

    Every level pools all RoIs; those of other levels have size zero there, which costs next to nothing.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor: Any = extractor
        self.layers = [
            (tuple(layer.output_size), layer.spatial_scale, layer.sampling_ratio, layer.aligned)
            for layer in extractor.roi_layers
        ]

    def forward(self, features: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        """RoIs (R, 5) -> (R, C, height, width)."""
        levels = len(self.layers)
        level_of = self.extractor.map_roi_levels(rois, levels)
        pooled: Any = None
        for level, (output_size, scale, sampling_ratio, aligned) in enumerate(self.layers):
            on_level = (level_of == level)[:, None]
            here = torch.cat([rois[:, :1], rois[:, 1:] * on_level.to(rois.dtype)], dim=1)
            part = torchvision.ops.roi_align(features[level], here, output_size, scale, sampling_ratio, aligned)
            # What a runtime makes of a RoI of size zero is not used: OpenVINO divides zero by zero.
            pooled = part if pooled is None else torch.where(on_level[:, :, None, None], part, pooled)
        return pooled


def as_rois(boxes: Tensor, there: Tensor) -> Tensor:
    """(N, K, 4) -> (N K, 5): the image of each box before its coordinates.

    Where there is no box, a small one takes its place: not every runtime pools a RoI of size zero without a NaN.
    """
    small = torch.tensor([0.0, 0.0, 8.0, 8.0], dtype=boxes.dtype, device=boxes.device)
    boxes = torch.where(there[..., None], boxes, small)
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    image = image[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat([image, boxes], dim=2).reshape(-1, 5)


def objectness(head: Any, classes: Tensor) -> Tensor:
    """Return the scores (N, n) of one level of an ``RPNHead``."""
    logits = flatten_level(classes, head.cls_out_channels)
    return logits[:, :, 0].sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :, 0]


def _rpn_refusal(head: Any, settings: Any) -> str | None:
    reason = overridden(head, {'predict': 'BaseDenseHead', 'predict_by_feat': 'BaseDenseHead'})
    reason = reason or overridden(head, dict.fromkeys(('_predict_by_feat_single', '_bbox_post_process'), 'RPNHead'))
    reason = reason or coder_refusal(head.bbox_coder) or nms_refusal(settings['nms'])
    if reason is None and min(int(settings.get('nms_pre', -1)), int(settings['max_per_img'])) <= 0:
        reason = 'test_cfg.rpn has no nms_pre or max_per_img, numbers were wanted'
    return reason


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, nn.ModuleList) else [value]
