"""Operators on boxes (x1, y1, x2, y2): overlaps, and three kinds of suppression."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_dense.mmcv_ops.numerics import as_c_float, operator, torchvision_operators, wide


@operator
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write overlaps into ``ious``.

    Args:
        bboxes1: (m, 4).
        bboxes2: (n, 4).
        ious: (m, n), or (m,) where ``aligned``.
        mode: 0: over the union; 1: over the first box.
        aligned: Compare the boxes in pairs; m equals n.
        offset: Added to widths and heights, 0 or 1.
    """
    first, second = wide(bboxes1), wide(bboxes2)
    if not aligned:
        first = first[:, None]
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    inter = (bottom_right - top_left + offset).clamp(min=0).prod(-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if mode == 0:
        area = area + (second[..., 2:] - second[..., :2] + offset).prod(-1) - inter
    ious.copy_(inter / area)


@operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Drop each box that overlaps a better one by more than the threshold; torchvision's NMS in mmcv's order.

    Among equal scores the order decides, and mmcv's is that of an unstable sort: it is made first.

    Args:
        boxes: (n, 4).
        scores: (n,).
        iou_threshold: Largest overlap that stays.
        offset: Added to widths and heights, 0 or 1.

    Returns:
        Indices of the boxes that stay, best first.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    sorted_scores, order = wide(scores).sort(0, descending=True)
    corners = wide(boxes)[order]
    if offset:
        corners = torch.cat((corners[:, :2], corners[:, 2:] + offset), dim=1)
    return order[torchvision_operators().nms(corners, sorted_scores.to(corners), as_c_float(iou_threshold))]


@operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the score of each box by its overlap with better ones. Source: https://arxiv.org/abs/1704.04503.

    Args:
        boxes: (n, 4), on the CPU.
        scores: (n,).
        dets: (n, 5), written here: the boxes that stay with their new scores, in the order of the result.
        iou_threshold: Overlap from which methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: A score below it drops the box.
        method: 0: drop; 1: times one minus the overlap; 2: Gaussian of the overlap.
        offset: Added to widths and heights, 0 or 1.

    Returns:
        Indices of the boxes that stay, (k,).
    """
    corners = wide(boxes).numpy()
    score = wide(scores).numpy().astype(corners.dtype)
    area = areas(corners, offset)
    threshold, least = corners.dtype.type(as_c_float(iou_threshold)), corners.dtype.type(as_c_float(min_score))
    order = np.arange(len(corners))
    rank = 0
    while rank < len(order):
        # The first of the best comes to the front; the one that stood there takes its place.
        best = rank
        if not np.isnan(score[order[rank]]):
            best += int(np.nanargmax(score[order[rank:]]))
        order[[rank, best]] = order[[best, rank]]
        index, rest = order[rank], order[rank + 1 :]
        overlap = overlaps(corners, area, index, rest, offset)
        if method == 0:
            weight = np.where(overlap >= threshold, 0, 1)
        elif method == 1:
            weight = np.where(overlap >= threshold, 1 - overlap, 1)
        else:
            # In fp64 and rounded, as the exponential functions of fp32 differ in their last bit.
            weight = np.exp(-(overlap * overlap / as_c_float(sigma)).astype(np.float64))
        score[rest] *= weight.astype(corners.dtype)
        order = np.concatenate((order[: rank + 1], fill_gaps(rest, ~(score[rest] < least))))
        rank += 1
    kept = torch.from_numpy(order)
    dets[: len(order)] = torch.cat((wide(boxes)[kept], torch.from_numpy(score)[kept, None]), dim=1).to(dets.dtype)
    return kept


def fill_gaps(indices: NDArray[np.int64], stays: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Remove entries as a list without order does: the last entry that stays moves into the first gap, and so on."""
    num_kept = int(stays.sum())
    kept = indices[:num_kept].copy()
    moved = indices[num_kept:][stays[num_kept:]]
    kept[~stays[:num_kept]] = moved[::-1]
    return kept


@operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group each box that NMS keeps with those that it suppresses.

    Args:
        dets: (n, 5), boxes and scores, on the CPU.
        iou_threshold: Overlap from which a box is suppressed.

    Returns:
        A list of indices for each kept box: itself, then its suppressed ones, best first.
    """
    corners = wide(dets)[:, :4].numpy()
    area = areas(corners, 0)
    threshold = corners.dtype.type(as_c_float(iou_threshold))
    order = wide(dets)[:, 4].contiguous().sort(0, descending=True)[1].numpy()
    groups = []
    while len(order):
        index, rest = order[0], order[1:]
        suppressed = overlaps(corners, area, index, rest, 0) >= threshold
        groups.append([int(index), *rest[suppressed].tolist()])
        order = rest[~suppressed]
    return groups


def areas(corners: NDArray[np.floating], offset: int) -> NDArray[np.floating]:
    """Areas (n,) of boxes (n, 4)."""
    return (corners[:, 2] - corners[:, 0] + offset) * (corners[:, 3] - corners[:, 1] + offset)


def overlaps(
    corners: NDArray[np.floating],
    area: NDArray[np.floating],
    index: int,
    others: NDArray[np.int64],
    offset: int,
) -> NDArray[np.floating]:
    """Intersection over union of the box ``index`` with the boxes ``others``; NaN for boxes without area."""
    box, rest = corners[index], corners[others]
    width = np.minimum(box[2], rest[:, 2]) - np.maximum(box[0], rest[:, 0]) + offset
    height = np.minimum(box[3], rest[:, 3]) - np.maximum(box[1], rest[:, 1]) + offset
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        return inter / (area[index] + area[others] - inter)
