"""Single-stage detectors of mmdet: RetinaNet, FCOS, ATSS, GFL and others with the same postprocessing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convnext_dense.export.boxes import (
    REMOVED,
    as_detections,
    best,
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
from convnext_dense.export.whole import WholeModel, family, overridden, owner


@family
class SingleStageDetector(WholeModel):
    """A ``SingleStageDetector`` of mmdet whose head predicts as ``BaseDenseHead`` or ``GFLHead`` do.

    Outputs ``boxes`` (N, K, 4) in pixels of the input, ``scores`` (N, K), ``labels`` (N, K) int32. K is
    ``test_cfg.max_per_img``; what is missing has score 0 and label -1.
    """

    task = 'detection'
    score_threshold: Tensor
    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        head: Any = model.bbox_head
        self.head = head
        self.integral = _predicts_as_gfl(head)
        settings: Any = model.test_cfg
        self.register_buffer('score_threshold', torch.tensor(float(settings['score_thr'])))
        self.candidates = int(settings['nms_pre'])
        self.min_size = float(settings.get('min_bbox_size', -1))
        self.nms_iou = nms_threshold(settings['nms'])
        self.across_classes = bool(settings['nms'].get('class_agnostic', False))
        self.max_detections = int(settings['max_per_img'])

    @classmethod
    def refusal(cls, model: Any) -> str | None:
        reason = overridden(model, dict.fromkeys(('predict', 'extract_feat'), 'SingleStageDetector'))
        if reason is not None:
            return reason
        head: Any = model.bbox_head
        base = 'BaseDenseHead'
        single = 'GFLHead' if _predicts_as_gfl(head) else base
        methods = dict.fromkeys(('predict', 'predict_by_feat', '_bbox_post_process'), base)
        reason = overridden(head, {**methods, '_predict_by_feat_single': single})
        if reason is not None:
            return reason
        settings: Any = model.test_cfg
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            return f'the classes of {type(head).__name__} are no plain sigmoid or softmax'
        if min(int(settings.get('nms_pre', -1)), int(settings.get('max_per_img', -1))) <= 0:
            return 'test_cfg has no nms_pre or max_per_img, numbers were wanted'
        return coder_refusal(head.bbox_coder) or nms_refusal(settings.get('nms'))

    @classmethod
    def settings(cls, model: Any) -> dict[str, Any]:
        return dict(score_threshold=float(model.test_cfg['score_thr']))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> boxes, scores and labels."""
        return self.core(self.normalised(image), image_limit(image))

    def core(self, normalised: Tensor, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs for the input of the backbone and the limit of the boxes in the image."""
        head: Any = self.head
        classes, distances, *factors = head(self.features(normalised))
        factors = factors[0] if factors else [None] * len(classes)
        priors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in classes], dtype=classes[0].dtype, device=classes[0].device
        )
        boxes, scores, labels = [], [], []
        for level in range(len(classes)):
            box, score, label = self.detect_level(
                classes[level], distances[level], factors[level], priors[level], level, limit
            )
            boxes.append(box)
            scores.append(score)
            labels.append(label)
        box, score, label = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)
        score = without_small(score, box, self.min_size)
        groups = torch.zeros_like(label) if self.across_classes else label
        kept = suppress(box, score, groups, self.nms_iou, self.max_detections)
        return as_detections(take(box, kept.places), kept.scores, take(label, kept.places))

    def detect_level(
        self, classes: Tensor, distance: Tensor, factor: Tensor | None, priors: Tensor, level: int, limit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best candidates of one level: boxes (N, k, 4), scores (N, k), labels (N, k).

        Args:
            classes: (N, anchors * C, H, W).
            distance: Deltas or distances of the boxes, (N, anchors * 4, H, W); distributions for GFL.
            factor: (N, anchors, H, W), such as the centre-ness, or None.
            priors: (n, 4) anchors or (n, 2) points.
            level: Its number.
            limit: Of the boxes in the image.
        """
        head: Any = self.head
        logits = flatten_level(classes, head.cls_out_channels)
        probability = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :, :-1]  # (N, n, C)
        count = probability.shape[2]

        # The k best pairs of place and class lie in the k places whose best class is best.
        _, place = best(probability.amax(2), self.candidates)
        nearby = take(probability, place)  # (N, k, C)
        first = torch.arange(self.candidates, device=place.device) < probability.shape[1]  # the others repeat a place
        there = (nearby > self.score_threshold) & first[None, :, None]
        nearby = torch.where(there, nearby, torch.full_like(nearby, REMOVED))
        score, pair = best(nearby.flatten(1), self.candidates)
        label = pair - pair // count * count
        place = place.gather(1, pair // count)

        prior = priors[place]  # (N, k, 2 or 4)
        distance = take(flatten_level(distance, distance.shape[1] // head.num_base_priors), place)
        if self.integral:
            stride = head.prior_generator.strides[level][0]
            distance = (head.integral(distance) * stride).reshape(*score.shape, 4)
            prior = (prior[..., :2] + prior[..., 2:]) / 2
        box = decode(head.bbox_coder, prior, distance, limit)
        if factor is not None:
            weighted = score * take(flatten_level(factor, 1), place)[:, :, 0].sigmoid()
            score = torch.where(score > REMOVED, weighted, score)
        return box, score, label


def _predicts_as_gfl(head: Any) -> bool:
    return owner(head, '_predict_by_feat_single') == 'GFLHead'
