"""Check label maps of semantic segmentation: their type, size and range."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from convnext_dense.data_check.findings import Finding, FindingCollector
from convnext_dense.data_check.images import ImageFacts, image_facts
from convnext_dense.data_check.parallel import map_files

UINT8_VALUES = 256  # mmseg reads labels as uint8


@dataclass(frozen=True)
class LabelRules:
    """How labels of a data set are read.

    Attributes:
        classes: Names of the classes in the order of their labels.
        ignore_index: The label that is not trained on.
        reduce_zero_label: 0 is ignored and others are counted down by 1.
        label_map: New label of each old one, for a part of the classes; None if labels stay.
        decoder: 'pillow' or 'cv2'.
        obeys_orientation: Images are turned by their EXIF orientation when they are loaded.
        key: Where the data set is in the config.
    """

    classes: tuple[str, ...]
    ignore_index: int
    reduce_zero_label: bool
    label_map: Mapping[int, int] | None
    decoder: str
    obeys_orientation: bool
    key: str

    def label_of(self, value: int) -> int:
        """Return the label of a pixel of a file, as mmseg's ``LoadAnnotations`` computes it."""
        if self.reduce_zero_label:
            value = 255 if value in (0, 255) else value - 1
        return (self.label_map or {}).get(value, value)

    def accepts(self, value: int) -> bool:
        """Return whether a pixel of a file stands for a class or is ignored."""
        label = self.label_of(value)
        return label < len(self.classes) or label == self.ignore_index


class MapFacts(NamedTuple):
    """What a label map holds.

    Attributes:
        shape: Height and width, and channels if there are several.
        values: The values of its pixels in rising order.
        problem: Why the file cannot be used; empty if it can.
    """

    shape: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    problem: str = ''


def map_facts(path: str, decoder: str) -> MapFacts:
    """Decode a label map as mmcv does, without conversion of its values."""
    content = b''
    try:
        content = Path(path).read_bytes()
        if not content:
            return MapFacts(problem='the label map is empty (0 bytes)')
        if decoder == 'pillow':
            with Image.open(path) as image:
                pixels: np.ndarray | None = np.array(image)
        else:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except FileNotFoundError:
        return MapFacts(problem='the label map does not exist')
    except (OSError, SyntaxError, ValueError) as error:
        return MapFacts(problem=f'the label map cannot be read or is cut off: {error}')
    if pixels is None:
        return MapFacts(problem='the label map is no image')
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2:
        return MapFacts(pixels.shape)
    if pixels.dtype == np.uint8:
        values = np.flatnonzero(np.bincount(pixels.ravel(), minlength=UINT8_VALUES))
    else:
        values = np.unique(pixels.astype(np.int64))
    return MapFacts(pixels.shape, tuple(values.tolist()))


def _pair_facts(pair: tuple[str, str], decoder: str, decode: bool) -> tuple[ImageFacts, MapFacts]:
    image, label_map = pair
    return image_facts(image, decode), map_facts(label_map, decoder)


def check_label_maps(pairs: Sequence[tuple[str, str]], rules: LabelRules, decode: bool) -> list[Finding]:
    """Check label maps and their images.

    Args:
        pairs: Image file and label map of each sample.
        rules: How labels are read.
        decode: Decode the images too, instead of reading headers.
    """
    inspect = functools.partial(_pair_facts, decoder=rules.decoder, decode=decode)
    all_facts = map_files(inspect, pairs, 'images and label maps')
    all_values: set[int] = set()
    for _, labels in all_facts:
        all_values.update(labels.values)
    findings = []
    is_two_valued = all_values == {0, 255} and len(rules.classes) == 2 and not rules.reduce_zero_label
    if is_two_valued:
        what = (
            f'the only values of the label maps are 0 and 255, and 255 is ignored: {rules.classes[1]!r} is never seen'
        )
        fix = "write 1 instead of 255: cv2.imwrite(path, (cv2.imread(path, cv2.IMREAD_UNCHANGED) > 0).astype('uint8'))"
        findings.append(Finding(rules.key, what, fix, (pairs[0][1],)))
    elif all_values and all(rules.label_of(value) == rules.ignore_index for value in all_values):
        what = f'the only values of the label maps are {sorted(all_values)}, which are all ignored'
        findings.append(Finding(rules.key, what, 'see reduce_zero_label and metainfo.classes there', (pairs[0][1],)))
    collector = FindingCollector(rules.key)
    for (image_path, map_path), (image, labels) in zip(pairs, all_facts, strict=True):
        if image.problem:
            collector.add(image.problem, 'restore or remove the file and its label map', image_path)
        if labels.problem:
            collector.add(labels.problem, 'restore it, or remove its image', map_path)
        if not image.problem and not labels.problem:
            _check_pair(collector, map_path, image, labels, rules)
    return findings + collector.findings()


def _check_pair(collector: FindingCollector, path: str, image: ImageFacts, labels: MapFacts, rules: LabelRules) -> None:
    """Check the label map of an image, both of which could be read."""
    if len(labels.shape) != 2:
        collector.add(
            f'the label map has {labels.shape[-1]} channels: a pixel is to be the index of a class, no colour',
            'convert it to one channel of class indices',
            path,
        )
        return
    size = image.loaded_size(rules.obeys_orientation)
    if labels.shape != size:
        collector.add(
            'the label map has another size than its image, and would be stretched',
            'make it for the image as it is loaded, turned by its EXIF orientation',
            f'{path}, {labels.shape[0]} x {labels.shape[1]} instead of {size[0]} x {size[1]}',
        )
    wrong = [value for value in labels.values if value < 0 or value >= UINT8_VALUES or not rules.accepts(value)]
    if wrong:
        low = 1 if rules.reduce_zero_label else 0
        last = low + len(rules.label_map or rules.classes) - 1
        collector.add(
            f'values of the label map are no class: {len(rules.classes)} classes are {low} to {last}, and '
            f'{rules.ignore_index} is ignored',
            f'correct the label maps, or set {rules.key}.metainfo.classes and num_classes of every head',
            f'{path}, values {wrong[:5]}',
        )
