"""How good label maps are: IoU by class, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnext_dense.dataset.label_maps import IGNORED, read_label_map
from convnext_dense.results import LabelMap


@dataclass(frozen=True)
class ImageResult:
    """Truth and prediction of one image.

    Attributes:
        path: Of the image.
        truth, found: Label maps; ignored pixels of the truth are 255.
        accuracy: Share of the labelled pixels that are right.
    """

    path: Path
    truth: LabelMap
    found: LabelMap
    accuracy: float


@dataclass(frozen=True)
class SegmentationReport:
    """Measures of a segmentor.

    Attributes:
        classes: Names.
        confusion: (classes, classes) pixels; rows are truth, columns predictions.
        images: One per image.
    """

    classes: Sequence[str]
    confusion: np.ndarray
    images: Sequence[ImageResult]

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, (classes,); NaN where neither truth nor prediction has any."""
        hits = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def measure(folder: Path, entries: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> SegmentationReport:
    """Compare label maps with the truth.

    Args:
        folder: The PNG files that ``tools/test.py --out`` has written.
        entries: Of mmseg's data set: img_path, seg_map_path, reduce_zero_label.
        classes: In the order of the labels.
    """
    count = len(classes)
    confusion = np.zeros((count, count), np.int64)
    images = []
    for entry in entries:
        truth = read_label_map(Path(entry['seg_map_path'])).astype(int)
        found = read_label_map(folder / f'{Path(entry["img_path"]).stem}.png').astype(int)
        if entry.get('reduce_zero_label'):  # label 0 is ignored, the others begin at 1
            truth = np.where((truth == 0) | (truth == IGNORED), IGNORED, truth - 1)
            found = found - 1
        is_labelled = (truth != IGNORED) & (truth < count)
        pairs = truth[is_labelled] * count + found[is_labelled]
        counts = np.bincount(pairs, minlength=count * count).reshape(count, count)
        confusion += counts
        accuracy = float(np.diag(counts).sum() / max(counts.sum(), 1))
        images.append(
            ImageResult(Path(entry['img_path']), LabelMap(truth, classes), LabelMap(found, classes), accuracy)
        )
    return SegmentationReport(classes, confusion, images)
