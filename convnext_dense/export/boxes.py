"""What detectors do with boxes after the heads, for batches and in operators that can be exported.

Shapes depend on the sizes of batch and image only. What is missing or removed keeps its place with a score of -1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

REMOVED = -1.0  # the score of a box that is not there


def nms_threshold(nms: Any) -> float:
    """Return the IoU threshold of a config of mmcv's NMS; see :func:`nms_refusal` for what can be exported."""
    return float(nms['iou_threshold'])


def nms_refusal(nms: Any) -> str | None:
    """Return why a config of mmcv's NMS cannot be exported, or None."""
    if nms is None or nms.get('type', 'nms') != 'nms':
        return f'its suppression is {nms and nms.get("type")!r}, nms was wanted'
    unknown = set(nms) - {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if unknown:
        return f'its nms has {", ".join(sorted(unknown))}, only iou_threshold was wanted'
    return None


def flatten_level(values: Tensor, width: int) -> Tensor:
    """(N, anchors * width, H, W) -> (N, H * W * anchors, width), in the order of the priors."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, width)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return rows of each image: values (N, n, ...) and index (N, k) -> (N, k, ...)."""
    if values.dim() == 2:
        return values.gather(1, index)
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` best scores of each image and their places, also where there are fewer.

    Args:
        scores: (N, n).
        count: Of each image.

    Returns:
        Scores (N, count), descending, :data:`REMOVED` where there are no more; indices (N, count) below n.
    """
    padded = F.pad(scores, (0, count), value=REMOVED)
    values, index = padded.topk(count, dim=1)
    return values, index.clamp(max=scores.shape[1] - 1)


def coder_refusal(coder: Any) -> str | None:
    """Return why a box coder of mmdet cannot be exported, or None: the old ones clip to pixels, not to the image."""
    if not hasattr(coder, 'clip_border'):
        return f'{type(coder).__name__} clips boxes in a way of its own, a coder with clip_border was wanted'
    return None


def image_limit(image: Tensor) -> Tensor:
    """Return the largest coordinates of boxes in an image (N, 3, H, W): W, H, W, H."""
    height, width = image.shape[-2:]
    return torch.tensor([width, height, width, height], dtype=torch.float32, device=image.device)


def decode(coder: Any, priors: Tensor, deltas: Tensor, limit: Tensor) -> Tensor:
    """Return boxes (..., 4) of a box coder of mmdet, clipped to the image if the coder clips.

    Args:
        coder: Such as ``DeltaXYWHBBoxCoder``.
        priors: (..., 4) anchors or (..., 2) points.
        deltas: (..., 4).
        limit: See :func:`image_limit`.
    """
    boxes = coder.decode(priors.reshape(-1, priors.shape[-1]), deltas.reshape(-1, 4))
    return clip(coder, boxes.reshape(deltas.shape), limit)


def clip(coder: Any, boxes: Tensor, limit: Tensor) -> Tensor:
    """Return the boxes within the image if a box coder of mmdet clips."""
    return torch.minimum(boxes.clamp(min=0), limit) if coder.clip_border else boxes


def without_small(scores: Tensor, boxes: Tensor, min_size: float) -> Tensor:
    """Return the scores with boxes removed that are not larger than ``min_size`` pixels; a negative one keeps all."""
    if min_size < 0:
        return scores
    large = (boxes[..., 2] - boxes[..., 0] > min_size) & (boxes[..., 3] - boxes[..., 1] > min_size)
    return torch.where(large, scores, torch.full_like(scores, REMOVED))


class Kept(NamedTuple):
    """The survivors of a suppression, best first."""

    scores: Tensor  # (N, count), REMOVED where there are no more
    places: Tensor  # (N, count), indices among the candidates


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, count: int) -> Kept:
    """Suppress overlapping boxes of one group and image, as mmcv's ``batched_nms`` does.

    All images go through one call. Groups are moved apart along the diagonal by the same distance as in mmcv, so that
    overlaps are rounded alike. Images are moved apart along y only, which keeps the coordinates small.

    Args:
        boxes: (N, n, 4).
        scores: (N, n), :data:`REMOVED` where there is no box.
        groups: (N, n) int64, such as a class or a level; zeros for a suppression across classes.
        iou_threshold: A box is removed if it overlaps a better one by more.
        count: Keep so many at most.
    """
    there = scores > REMOVED
    zero = torch.zeros_like(boxes)
    present = torch.where(there[..., None], boxes, zero)
    distance = present.max() + 1
    image_distance = distance - present.min()
    group = groups.to(boxes.dtype)
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)[:, None]
    # A distance of zero for the first group and image: nothing is rounded there.
    right = group * distance
    down = right + image * image_distance
    moved = boxes + torch.stack([right, down, right, down], dim=-1)
    index = there.reshape(-1).nonzero()[:, 0]
    chosen = torchvision.ops.nms(moved.reshape(-1, 4)[index], scores.reshape(-1)[index], iou_threshold)
    survives = torch.zeros_like(scores).reshape(-1).index_fill(0, index[chosen], 1.0).reshape(scores.shape)
    left = torch.where(survives > 0, scores, torch.full_like(scores, REMOVED))
    return Kept(*best(left, count))


def as_detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and labels as they leave the model: zero, 0 and -1 where there is no detection."""
    there = scores > REMOVED
    return (
        torch.where(there[..., None], boxes, torch.zeros_like(boxes)),
        torch.where(there, scores, torch.zeros_like(scores)),
        torch.where(there, labels, torch.full_like(labels, -1)).to(torch.int32),
    )
