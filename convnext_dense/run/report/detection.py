"""How good detections are: average precision by class and size, precision and recall, and what is taken for what."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext_dense.results import Detections

SCORE = 0.3  # detections below are left out of confusion and pictures
IOU = 0.5  # that a detection and an object have at least, to match
SIZES = ('all', 'small', 'medium', 'large')  # of COCOeval, in its order


@dataclass(frozen=True)
class ImageResult:
    """Truth and prediction of one image.

    Attributes:
        path: Of the image.
        truth, found: With scores of 1, and from :data:`SCORE` on.
        f1: Harmonic mean of precision and recall at :data:`IOU` and :data:`SCORE`; 1 where nothing was to be found
            and nothing was.
    """

    path: Path
    truth: Detections
    found: Detections
    f1: float


@dataclass(frozen=True)
class DetectionReport:
    """Measures of a detector.

    Attributes:
        classes: Names.
        average_precision: Per kind ('bbox', 'segm'), (classes, sizes of :data:`SIZES`); NaN without objects.
        precision: (classes, 101), of boxes at an IoU of 0.5, at recalls of 0 to 1; NaN without objects.
        confusion: (classes + 1, classes + 1) objects; rows are truth, columns predictions, the last ones are nothing.
        images: One per image.
    """

    classes: Sequence[str]
    average_precision: Mapping[str, np.ndarray]
    precision: np.ndarray
    confusion: np.ndarray
    images: Sequence[ImageResult]


def measure(predictions: Path, annotations: Path, classes: Sequence[str], kinds: Sequence[str]) -> DetectionReport:
    """Measure detections as COCO does.

    Args:
        predictions: The pickle that ``tools/test.py --out`` has written.
        annotations: COCO's JSON file of the same images.
        classes: Of the model, in the order of its labels.
        kinds: 'bbox', 'segm'.
    """
    samples = pickle.loads(predictions.read_bytes())  # written by this process
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO(str(annotations))
        categories = [truth.getCatIds(catNms=[name])[0] for name in classes]
        average_precision, precision = {}, np.full((len(classes), 101), np.nan)
        for kind in kinds:
            evaluation = _evaluate(truth, samples, categories, kind)
            if evaluation is None:
                average_precision[kind] = np.zeros((len(classes), len(SIZES)))
                continue
            table = evaluation.eval['precision'][..., -1]  # (IoU, recall, class, size), 100 detections per image
            # COCOeval sorts the categories.
            order = [list(evaluation.params.catIds).index(category) for category in categories]
            table = np.where(table < 0, np.nan, table)[:, :, order]
            with np.errstate(invalid='ignore'):
                average_precision[kind] = _mean(table)
            if kind == 'bbox':
                precision = table[0, :, :, 0].T
    images = [_image_result(sample, truth, categories, classes) for sample in samples]
    confusion = np.zeros((len(classes) + 1,) * 2, int)
    for image in images:
        _count(image, confusion)
    return DetectionReport(classes, average_precision, precision, confusion, images)


def _mean(table: np.ndarray) -> np.ndarray:
    """Return the mean over IoU and recall, (classes, sizes); NaN where there are no objects."""
    flat = table.reshape(-1, *table.shape[2:])
    counted = (~np.isnan(flat)).sum(axis=0)
    return np.where(counted > 0, np.nansum(flat, axis=0) / np.maximum(counted, 1), np.nan)


def _evaluate(truth: COCO, samples: Sequence[Mapping[str, Any]], categories: Sequence[int], kind: str) -> Any:
    """Run COCOeval; return None without any detection."""
    rows = []
    for sample in samples:
        found = sample['pred_instances']
        for i in range(len(found['scores'])):
            x0, y0, x1, y1 = map(float, found['bboxes'][i])
            row = dict(
                image_id=sample['img_id'],
                category_id=categories[int(found['labels'][i])],
                score=float(found['scores'][i]),
                bbox=[x0, y0, x1 - x0, y1 - y0],
            )
            if kind == 'segm':
                row['segmentation'] = found['masks'][i]
                row.pop('bbox')
            rows.append(row)
    if not rows:
        return None
    evaluation = COCOeval(truth, truth.loadRes(rows), kind)
    evaluation.params.catIds = list(categories)
    evaluation.params.imgIds = [sample['img_id'] for sample in samples]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _image_result(
    sample: Mapping[str, Any], truth: COCO, categories: Sequence[int], classes: Sequence[str]
) -> ImageResult:
    size = tuple(int(side) for side in sample['ori_shape'][:2])
    annotations = truth.loadAnns(truth.getAnnIds(imgIds=[sample['img_id']], catIds=list(categories), iscrowd=False))
    boxes = np.array([annotation['bbox'] for annotation in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([categories.index(annotation['category_id']) for annotation in annotations], int)
    objects = Detections(boxes, np.ones(len(labels)), labels, classes, size)  # type: ignore[arg-type]
    found = sample['pred_instances']
    scores = np.asarray(found['scores'], float)
    order = np.argsort(-scores, kind='stable')
    detections = Detections(
        np.asarray(found['bboxes'], float).reshape(-1, 4)[order],
        scores[order],
        np.asarray(found['labels'], int)[order],
        classes,
        size,  # type: ignore[arg-type]
    ).above(SCORE)
    hits = sum(objects.labels[i] == detections.labels[k] for i, k in match(objects.boxes, detections.boxes))
    total = len(objects) + len(detections)
    return ImageResult(Path(sample['img_path']), objects, detections, float(2 * hits / total) if total else 1.0)


def match(objects: np.ndarray, detections: np.ndarray) -> list[tuple[int, int]]:
    """Give each detection, the best first, the free object that it overlaps most, of at least :data:`IOU`.

    Args:
        objects, detections: (N, 4) and (M, 4), x0, y0, x1, y1.

    Returns:
        Pairs of indices (object, detection).
    """
    pairs = []
    overlaps = box_iou(objects, detections)
    for k in range(len(detections)):
        if not len(objects):
            break
        i = int(overlaps[:, k].argmax())
        if overlaps[i, k] >= IOU:
            pairs.append((i, k))
            overlaps[i] = -1
    return pairs


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each pair of boxes, (N, M)."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = (np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clip(0)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    common = sides.prod(axis=2)
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)


def _count(image: ImageResult, confusion: np.ndarray) -> None:
    """Add the objects of an image to a confusion matrix."""
    pairs = match(image.truth.boxes, image.found.boxes)
    nothing = len(confusion) - 1
    for i, k in pairs:
        confusion[image.truth.labels[i], image.found.labels[k]] += 1
    for i in set(range(len(image.truth))) - {i for i, _ in pairs}:
        confusion[image.truth.labels[i], nothing] += 1
    for k in set(range(len(image.found))) - {k for _, k in pairs}:
        confusion[nothing, image.found.labels[k]] += 1
