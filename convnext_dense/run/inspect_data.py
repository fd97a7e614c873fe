"""What is in a data set, as lines and as a page with pictures: ``convnext-dense dataset inspect``."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnext_dense.dataset.duplicates import near_duplicates
from convnext_dense.dataset.label_maps import IGNORED, mask_of, read_label_map
from convnext_dense.dataset.records import LabelledData, LabelledImage
from convnext_dense.errors import UserError
from convnext_dense.images import read_image
from convnext_dense.results import Detections, LabelMap
from convnext_dense.run.html_page import HtmlPage

SAMPLES = 12  # pictures per split
# COCO's sizes of objects: sides of squares of the same area, in pixels.
SMALL, LARGE = 32, 96


@dataclass
class Summary:
    """What :func:`inspect_data` counted.

    Attributes:
        images: Images per split.
        empty: Names of images without an object, or without a labelled pixel, per split.
        per_class: Per split, objects (detection) or pixels (segmentation) of each class.
        images_of_class: Per split, images that show each class.
        image_sides: (images, 2), height and width in pixels.
        object_sides: (objects,), the square root of the area of each box in pixels; empty for segmentation.
        duplicates: Names of images of train and of val or test that show nearly the same.
    """

    images: dict[str, int]
    empty: dict[str, list[str]]
    per_class: dict[str, Counter[int]]
    images_of_class: dict[str, Counter[int]]
    image_sides: np.ndarray
    object_sides: np.ndarray
    duplicates: list[tuple[str, str]]


def inspect_data(data: LabelledData) -> Summary:
    """Count classes, sizes, empty images and near-duplicates."""
    empty: dict[str, list[str]] = {}
    per_class: dict[str, Counter[int]] = {}
    images_of_class: dict[str, Counter[int]] = {}
    sides = []
    for split, images in data.splits.items():
        empty[split], per_class[split], images_of_class[split] = [], Counter(), Counter()
        for image in images:
            counts = _labels_of(image)
            per_class[split] += counts
            images_of_class[split] += Counter(list(counts))
            if not counts:
                empty[split].append(image.name)
            for found in image.objects:
                x0, y0, x1, y1 = found.box
                sides.append(max((x1 - x0) * (y1 - y0), 0) ** 0.5)
    held_out = [image for split in ('val', 'test') for image in data.splits.get(split, ())]
    pairs = near_duplicates(data.splits.get('train', ()), held_out)
    return Summary(
        images={split: len(images) for split, images in data.splits.items()},
        empty=empty,
        per_class=per_class,
        images_of_class=images_of_class,
        image_sides=np.array([image.size for image in data.images]).reshape(-1, 2),
        object_sides=np.array(sides),
        duplicates=[(one.name, other.name) for one, other in pairs],
    )


def _labels_of(image: LabelledImage) -> Counter[int]:
    """Return objects, or pixels, of each class in an image."""
    if image.label_map is None:
        return Counter(found.label for found in image.objects)
    labels, counts = np.unique(read_label_map(image.label_map), return_counts=True)
    return Counter({int(label): int(count) for label, count in zip(labels, counts) if label != IGNORED})


def summary_lines(data: LabelledData, summary: Summary) -> Iterator[str]:
    """Yield the lines that the command prints."""
    what = 'objects' if data.kind == 'detection' else 'pixels'
    kind = 'label maps' if data.kind == 'segmentation' else 'boxes and outlines' if data.has_masks else 'boxes'
    splits = list(data.splits)
    counted = ', '.join(f'{count} {split}' for split, count in summary.images.items())
    classes = f'{len(data.classes)} class{"es" if len(data.classes) != 1 else ""}'
    yield f'{kind} of {classes} on {sum(summary.images.values())} images ({counted})'
    width = max(map(len, data.classes)) + 2
    yield f'{what:<{width}}' + ''.join(f'{split:>12}' for split in splits)
    for label, name in enumerate(data.classes):
        yield f'{name:<{width}}' + ''.join(f'{summary.per_class[split][label]:>12,}' for split in splits)
    for line in (_image_sizes(summary), _object_sizes(summary)):
        if line:
            yield line
    for split in splits:
        absent = [name for label, name in enumerate(data.classes) if not summary.per_class[split][label]]
        if absent:
            yield f'{split}: no {what} of {_some(absent)}'
        if summary.empty[split]:
            yield f'{split}: {len(summary.empty[split])} images without {what}: {_some(summary.empty[split])}'
    if summary.duplicates:
        pairs = [f'{one} and {other}' for one, other in summary.duplicates]
        yield f'{len(pairs)} near-duplicates between train and val or test: {_some(pairs)}'
    for loss, count in data.losses.items():
        yield f'{count} {loss}'


def _image_sizes(summary: Summary) -> str:
    if not len(summary.image_sides):
        return ''
    smallest, largest = summary.image_sides.min(axis=0), summary.image_sides.max(axis=0)
    median = np.median(summary.image_sides, axis=0).astype(int)
    ranges = ' to '.join(f'{height}x{width}' for height, width in (smallest, largest))
    return f'images (height x width): {ranges}, median {median[0]}x{median[1]}'


def _object_sizes(summary: Summary) -> str:
    sides = summary.object_sides
    if not len(sides):
        return ''
    low, middle, high = np.percentile(sides, (5, 50, 95))
    shares = [np.mean(sides < SMALL), np.mean((sides >= SMALL) & (sides < LARGE)), np.mean(sides >= LARGE)]
    small, medium, large = (f'{100 * share:.0f} %' for share in shares)
    return (
        f'boxes, square root of the area: 5 % below {low:.0f}, median {middle:.0f}, 5 % above {high:.0f} pixels; '
        f"by COCO's sizes {small} small, {medium} medium, {large} large"
    )


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')


def write_page(data: LabelledData, summary: Summary, findings: Sequence[str], path: Path, seed: int = 0) -> None:
    """Write a page with the counts and some images with their labels.

    Args:
        data, summary: As for :func:`summary_lines`.
        findings: Sentences of the data check.
        path: The HTML file.
        seed: Decides which images are drawn.

    Raises:
        UserError: Another file is in its place.
    """
    page = HtmlPage(f'{sum(summary.images.values())} images, {len(data.classes)} classes')
    page.add_heading('Classes', 'classes')
    columns = [f'{split}: {what}' for split in data.splits for what in ('images', 'objects')]
    if data.kind == 'segmentation':
        columns = [column.replace('objects', 'pixels') for column in columns]
    rows: list[list[object]] = []
    for label, name in enumerate(data.classes):
        cells: list[object] = [name]
        for split in data.splits:
            cells += [summary.images_of_class[split][label], summary.per_class[split][label]]
        rows.append(cells)
    page.add_table(['class', *columns], rows)
    page.add_heading('Sizes and findings', 'findings')
    page.add_source('\n'.join([*summary_lines(data, summary), *findings]), wrapped=True)
    for split, images in data.splits.items():
        page.add_heading(f'Samples of {split}', f'samples-{split}')
        chosen = random.Random(seed).sample(list(images), min(SAMPLES, len(images)))
        for image in sorted(chosen, key=lambda sample: sample.name):
            page.add_picture(draw(image, data.classes), f'{image.name}, {image.size[0]}x{image.size[1]}')
    page.write(path)


def draw(image: LabelledImage, classes: Sequence[str]) -> np.ndarray:
    """Return an image (height, width, 3), RGB uint8, with its labels."""
    try:
        pixels = read_image(image.path)
    except UserError:  # black: the check of the data names the file
        return np.zeros((*image.size, 3), np.uint8)
    if image.label_map is not None:
        return LabelMap(read_label_map(image.label_map), classes).draw(pixels)
    if not image.objects:
        return pixels
    masks = None
    if any(found.segmentation for found in image.objects):
        nothing = np.zeros(image.size, bool)
        masks = np.stack([mask_of(found, image.size) if found.segmentation else nothing for found in image.objects])
    boxes = np.array([found.box for found in image.objects], np.float32)
    labels = np.array([found.label for found in image.objects])
    drawn = Detections(boxes, np.ones(len(labels)), labels, classes, image.size, masks)
    return drawn.draw(pixels, with_names=len(classes) > 1, with_scores=False)
