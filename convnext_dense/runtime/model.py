"""From images to results with an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convnext_dense.errors import UserError
from convnext_dense.images import Images, images_of, read_image, resize_bilinear, resize_image
from convnext_dense.results import Detections, LabelMap, Result
from convnext_dense.runtime.metadata import parse
from convnext_dense.runtime.sessions import Session, open_session


class Model:
    """An exported detector or segmentor.

    Args:
        path: A file that ``tools/export.py`` wrote, ``.onnx`` or ``.xml``.
        runtime: ``'onnxruntime'`` or ``'openvino'``; None takes the first that is installed and reads the file.
        threads: Number of threads; None leaves it to the runtime.
        bf16: Let OpenVINO compute in bfloat16 where the processor can.

    Attributes:
        metadata: See :mod:`convnext_dense.runtime.metadata`.
        names: Of the classes.

    Example::

        for result in Model('mask_rcnn.onnx')('street.jpg'):
            print(result.names[result.labels[0]], result.boxes[0], result.scores[0])

    Raises:
        UserError: The file cannot be used.
    """

    def __init__(
        self, path: str | Path, runtime: str | None = None, threads: int | None = None, bf16: bool = False
    ) -> None:
        self.session: Session = open_session(Path(path), runtime, threads, bf16)
        self.metadata = parse(self.session.metadata, path)
        self.names: list[str] = self.metadata['names']

    def __call__(self, images: Images) -> list[Result]:
        """Return a result for each image.

        Args:
            images: A file, a folder or an array (height, width, 3), RGB uint8; or several of them.

        Raises:
            UserError: A file cannot be read as an image, or an array is none.
        """
        return [self.predict(_as_array(image)) for image in images_of(images)]

    def predict(self, image: np.ndarray) -> Result:
        """Return the result for one image (height, width, 3), RGB uint8."""
        resized, fixed = self._prepare(image)
        if self.metadata['task'] == 'detection':
            return self._detect(fixed, resized, image.shape[:2])
        return self._segment(fixed, resized, image.shape[:2])

    def _prepare(self, image: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
        """Return the size after the resize, and the input (1, 3, H, W) float32, padded if the size is fixed."""
        height, width = image.shape[:2]
        size = resized_size((height, width), self.metadata['resize'])
        canvas = self.metadata['size']
        slides = self.metadata.get('mode') == 'slide'
        if canvas is not None and not slides:
            ratio = min(canvas[0] / height, canvas[1] / width)
            size = (min(int(height * ratio + 0.5), canvas[0]), min(int(width * ratio + 0.5), canvas[1]))
        pixels = resize_image(image, size).astype(np.float32).transpose(2, 0, 1)
        if canvas is not None and not slides:
            pixels = self._pad(pixels, canvas)
        return size, np.ascontiguousarray(pixels[None])

    def _pad(self, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Pad (3, h, w) to ``size`` at the right and below, by the mean: zero after the normalisation."""
        padded = np.empty((3, *size), np.float32)
        padded[:] = np.asarray(self.metadata['mean'] or (0,), np.float32).reshape(-1, 1, 1)
        padded[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        return padded

    def _detect(self, image: np.ndarray, resized: tuple[int, int], size: tuple[int, int]) -> Detections:
        with_masks = 'mask_threshold' in self.metadata
        outputs = self.session.run(image, ['boxes', 'scores', 'labels', *(['masks'] if with_masks else [])])
        boxes, scores, labels = (output[0] for output in outputs[:3])
        there = labels >= 0
        height, width = resized
        boxes = np.clip(boxes[there], 0, np.array([width, height, width, height], np.float32))
        boxes = boxes / np.array([width / size[1], height / size[0]] * 2, np.float32)
        masks = None
        if with_masks:
            masks = paste_masks(outputs[3][0][there], boxes, size, self.metadata['mask_threshold'])
        return Detections(
            boxes, scores[there], labels[there], self.names, (size[0], size[1]), masks, self.metadata['palette']
        )

    def _segment(self, image: np.ndarray, resized: tuple[int, int], size: tuple[int, int]) -> LabelMap:
        if self.metadata['mode'] == 'whole' and resized == tuple(size):
            labels = self.session.run(image, ['labels'])[0][0, : size[0], : size[1]]
        else:
            logits = self._logits(image)[:, : resized[0], : resized[1]]
            labels = self._decide(logits, size)
        return LabelMap(labels.astype(np.int64), self.names, self.metadata['palette'])

    def _logits(self, image: np.ndarray) -> np.ndarray:
        """Return the logits (C, H, W), in the mode slide as the average over windows."""
        if self.metadata['mode'] == 'whole':
            return self.session.run(image, ['logits'])[0][0]
        height, width = image.shape[2:]
        total: Any = None
        count = np.zeros((height, width), np.float32)
        for rows, columns in windows((height, width), self.metadata['crop_size'], self.metadata['stride']):
            crop = image[0, :, rows, columns]
            crop_height, crop_width = crop.shape[1:]
            if self.metadata['size'] is not None:
                crop = self._pad(crop, self.metadata['size'])
            logits = self.session.run(np.ascontiguousarray(crop[None]), ['logits'])[0][0]
            if total is None:
                total = np.zeros((logits.shape[0], height, width), np.float32)
            total[:, rows, columns] += logits[:, :crop_height, :crop_width]
            count[rows, columns] += 1
        return total / count

    def _decide(self, logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the labels at ``size``, class by class: the logits of a large image are large."""
        align_corners = self.metadata['align_corners']
        best: Any = None
        labels = np.zeros(size, np.int64)
        for index in range(len(logits)):
            plane = resize_bilinear(logits[index : index + 1], size, align_corners)[0]
            if len(logits) == 1:
                return (1 / (1 + np.exp(-plane)) > self.metadata['binary_threshold']).astype(np.int64)
            if best is None:
                best = plane
                continue
            better = plane > best
            labels[better] = index
            best = np.maximum(best, plane)
        return labels


def resized_size(size: tuple[int, int], resize: dict[str, Any] | None) -> tuple[int, int]:
    """Return height and width after the ``Resize`` of a test pipeline; as mmcv rounds them."""
    if resize is None:
        return size
    height, width = size
    if not resize['keep_ratio']:
        return int(resize['scale'][1]), int(resize['scale'][0])
    long, short = max(resize['scale']), min(resize['scale'])
    ratio = min(long / max(size), short / min(size))
    return int(height * ratio + 0.5), int(width * ratio + 0.5)


def windows(size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Return the windows of a sliding test, as mmseg's ``slide_inference`` lays them out; all are (height, width)."""
    spans = []
    for length, window, step in zip(size, crop, stride, strict=True):
        count = max(length - window + step - 1, 0) // step + 1
        ends = [min(i * step + window, length) for i in range(count)]
        spans.append([slice(max(end - window, 0), end) for end in ends])
    return [(rows, columns) for rows in spans[0] for columns in spans[1]]


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float | None) -> np.ndarray:
    """Return masks in the image, as mmdet's ``_do_paste_mask`` computes them.

    Args:
        masks: (N, side, side) float32, probabilities over the boxes.
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        size: Height and width of the image.
        threshold: A pixel with at least this probability belongs to the mask; None keeps probabilities.

    Returns:
        (N, height, width) bool, or float32 without a threshold; False or 0 outside of the boxes.
    """
    pasted = np.zeros((len(masks), *size), np.float32 if threshold is None else bool)
    for i, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        rows, above, below, down = _mask_samples(box[1], box[3], size[0], mask.shape[0])
        columns, before, behind, across = _mask_samples(box[0], box[2], size[1], mask.shape[1])
        bordered = np.pad(mask.astype(np.float32), 1)  # zero outside
        lines = bordered[above] * (1 - down[:, None]) + bordered[below] * down[:, None]
        values = lines[:, before] * (1 - across) + lines[:, behind] * across
        pasted[i, rows, columns] = values if threshold is None else values >= threshold
    return pasted


def _mask_samples(start: float, end: float, length: int, side: int) -> tuple[slice, np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels near a box along one axis, both neighbours in the bordered mask, the second's weight."""
    first = int(max(np.floor(start) - 1, 0))
    last = int(min(np.ceil(end) + 1, length))
    pixels = np.arange(first, max(last, first), dtype=np.float32) + np.float32(0.5)
    if end > start:
        position = (pixels - start) / (end - start) * side - np.float32(0.5)
    else:
        position = np.full_like(pixels, side / 2 - 0.5)  # as mmdet: the middle of the mask
    position = np.clip(position + 1, 0, side + 1)  # in the bordered mask
    low = np.minimum(position.astype(np.int64), side)
    return slice(first, max(last, first)), low, low + 1, (position - low).astype(np.float32)


def _as_array(image: Path | np.ndarray) -> np.ndarray:
    if isinstance(image, Path):
        return read_image(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f'an image is (height, width, 3) RGB uint8, found {image.shape} {image.dtype}: convert it')
    return image
