"""Suppression and overlaps against loops over pairs of boxes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

# Overlaps with the first box: 81 / 119 = 0.68, 0.5 exactly, 0.
FEW = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 5], [20, 20, 30, 30]])


def crowd(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """40 boxes with distinct scores."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=generator, dtype=torch.float64) * 20
    size = torch.rand(40, 2, generator=generator, dtype=torch.float64) * 15 + 1
    scores = (torch.randperm(40, generator=generator) + 1) / 64
    return torch.cat((corner, corner + size), 1).to(dtype), scores.to(dtype)


def iou(first: Tensor, second: Tensor, offset: int) -> float:
    ax1, ay1, ax2, ay2 = first.tolist()
    bx1, by1, bx2, by2 = second.tolist()
    width = max(0.0, min(ax2, bx2) - max(ax1, bx1) + offset)
    height = max(0.0, min(ay2, by2) - max(ay1, by1) + offset)
    area = (ax2 - ax1 + offset) * (ay2 - ay1 + offset) + (bx2 - bx1 + offset) * (by2 - by1 + offset)
    return width * height / (area - width * height)


def greedy(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[list[int]]:
    """Groups of a kept box and those it suppresses, best first."""
    order = sorted(range(len(boxes)), key=lambda index: -scores[index])
    groups = []
    while order:
        best, *rest = order
        group = [index for index in rest if iou(boxes[best], boxes[index], offset) > threshold]
        groups.append([best, *group])
        order = [index for index in rest if index not in group]
    return groups


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.2, 0.5])
@pytest.mark.parametrize('seed', [0, 1])
def test_nms(ops, seed, threshold, offset):
    boxes, scores = crowd(seed)
    dets, kept = ops.nms(boxes, scores, threshold, offset)
    assert kept.tolist() == [group[0] for group in greedy(boxes, scores, threshold, offset)]
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[kept])


def test_nms_keeps_an_overlap_that_equals_the_threshold(ops):
    assert ops.nms(FEW, torch.tensor([0.9, 0.5, 0.8, 0.7]), 0.5)[1].tolist() == [0, 2, 3]


def test_nms_rounds_the_threshold_to_fp32(ops):
    """The overlap 0.6 in fp32 is more than 0.6, and equals the threshold that the C interface of mmcv sees."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.6)[1].tolist() == [0, 1]


def test_nms_takes_tied_scores_in_the_order_of_the_unstable_sort(ops):
    """Of equal boxes with one score, the first in that order stays."""
    scores = torch.full((100,), 0.5)
    first = int(scores.sort(0, descending=True)[1][0])
    assert ops.nms(FEW[:1].repeat(100, 1), scores, 0.5)[1].tolist() == [first]


def test_nms_of_arrays_and_of_no_boxes(ops):
    dets, kept = ops.nms(FEW.numpy(), np.array([0.9, 0.5, 0.8, 0.7], dtype=np.float32), 0.4)
    assert kept.tolist() == [0, 3] and dets.shape == (2, 5)
    assert ops.nms(FEW[:0], torch.zeros(0), 0.5)[1].tolist() == []


def test_batched_nms_suppresses_within_a_class(ops):
    dets, kept = ops.batched_nms(
        FEW, torch.tensor([0.9, 0.5, 0.8, 0.7]), torch.tensor([0, 0, 1, 1]), dict(type='nms', iou_threshold=0.4)
    )
    assert kept.tolist() == [0, 2, 3] and dets[:, 4].tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_in_half_types(ops, dtype):
    assert ops.nms(FEW.to(dtype), torch.tensor([0.9, 0.5, 0.8, 0.7], dtype=dtype), 0.4)[1].tolist() == [0, 3]


def soft(boxes: Tensor, scores: Tensor, threshold: float, sigma: float, least: float, method: str, offset: int):
    """Soft-NMS as the paper writes it: take the best of those that are left, lower the others, drop the low ones."""
    scores, left, taken = scores.tolist(), list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda index: scores[index])
        left.remove(best)
        taken.append(best)
        for index in left:
            overlap = iou(boxes[best], boxes[index], offset)
            if method == 'gaussian':
                scores[index] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                scores[index] *= 1 - overlap if method == 'linear' else 0
        left = [index for index in left if scores[index] >= least]
    return taken, [scores[index] for index in taken]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('least', [0.01, 0.15])
def test_soft_nms(ops, least, method, offset):
    boxes, scores = crowd(2)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, 0.5, least, method, offset)
    indices, new_scores = soft(boxes, scores, 0.3, 0.5, least, method, offset)
    assert kept.tolist() == indices
    assert torch.equal(dets[:, :4], boxes[kept])
    assert dets[:, 4].tolist() == pytest.approx(new_scores, rel=1e-7)


def test_soft_nms_takes_the_first_of_tied_scores_and_fills_gaps_from_the_end(ops):
    """Box 1 is dropped by box 0; box 4 moves to its place, before its equals 2 and 3."""
    far = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    scores = torch.tensor([0.9, 0.8, 0.5, 0.5, 0.5])
    assert ops.soft_nms(far, scores, 0.3, method='naive', min_score=0.1)[1].tolist() == [0, 4, 2, 3]


def test_boxes_that_want_gradients(ops):
    """Proposals in training do; what suppression gives depends on them by the boxes alone."""
    boxes, scores = crowd(0)
    for name in ('nms', 'soft_nms'):
        expected = getattr(ops, name)(boxes, scores, 0.5)[1]
        assert getattr(ops, name)(boxes.clone().requires_grad_(), scores.clone().requires_grad_(), 0.5)[1].equal(
            expected
        )


@pytest.mark.parametrize('seed', [0, 1])
def test_nms_match(ops, seed):
    boxes, scores = crowd(seed, torch.float32)
    groups = ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.45)
    assert [group.tolist() for group in groups] == greedy(boxes, scores, 0.45, 0)


def test_nms_match_suppresses_an_overlap_that_equals_the_threshold(ops):
    dets = torch.cat((FEW, torch.tensor([[0.9], [0.5], [0.8], [0.7]])), 1)
    assert [group.tolist() for group in ops.nms_match(dets, 0.5)] == [[0, 2, 1], [3]]


@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps(ops, offset):
    first, second = crowd(3)[0][:5], crowd(4)[0][:5]
    expected = [[iou(a, b, offset) for b in second] for a in first]
    found = ops.bbox_overlaps(first, second, offset=offset)
    assert found.tolist() == [pytest.approx(row, rel=1e-12) for row in expected]
    aligned = ops.bbox_overlaps(first, second, aligned=True, offset=offset)
    assert aligned.tolist() == pytest.approx([expected[i][i] for i in range(5)], rel=1e-12)


def test_bbox_overlaps_over_the_first_box(ops):
    assert ops.bbox_overlaps(FEW[2:3], FEW[:2], mode='iof').tolist() == [[1.0, pytest.approx(0.72)]]
