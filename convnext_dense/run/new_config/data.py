"""What a config has to know about a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnext_dense.dataset.formats import read_labels
from convnext_dense.dataset.label_maps import ADE_FOLDER
from convnext_dense.dataset.records import LabelledData
from convnext_dense.errors import UserError
from convnext_dense.results import class_colours

COCO_FOLDER = 'coco'


@dataclass(frozen=True)
class DataFacts:
    """A data set in the layout of COCO or ADE20K.

    Attributes:
        root: Its folder.
        is_segmentation: Whether it holds label maps.
        classes: Names in the order of the labels.
        palette: A colour (R, G, B) for each class.
        num_train, num_val: Numbers of images.
        num_empty: Training images without an object.
        has_masks: Whether every object has an outline.
        has_test: Whether there is a test split.
        image_size: Median height and width of the training images in pixels.
        object_side: Median of the square root of the area of a training box in pixels; None without boxes.
        image_suffix: Of the image files, such as '.jpg'.
    """

    root: Path
    is_segmentation: bool
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_train: int
    num_val: int
    num_empty: int
    has_masks: bool
    has_test: bool
    image_size: tuple[int, int]
    object_side: float | None
    image_suffix: str


def read_facts(folder: Path) -> DataFacts:
    """Read a data set in one of our layouts.

    Args:
        folder: What ``convnext-dense dataset convert`` wrote, or the ``coco`` or ``ADEChallengeData2016`` in it.

    Raises:
        UserError: The folder has another layout, no training or validation images, or images of several suffixes.
    """
    root = _find_root(folder)
    data = read_labels(root)
    for split in ('train', 'val'):
        if not data.splits.get(split):
            raise UserError(f'{root} has no {split} images: split the data with `convnext-dense dataset split`')
    suffixes = sorted({image.path.suffix for image in data.images})
    is_segmentation = data.kind == 'segmentation'
    if is_segmentation and len(suffixes) > 1:
        raise UserError(f'mmseg reads images of one suffix, {root} holds {", ".join(suffixes)}: convert the images')
    if is_segmentation and len(data.classes) < 2:
        raise UserError(f'{root} has label maps of one class: add the class of all other pixels to classes.txt')
    train = data.splits['train']
    height, width = np.median([image.size for image in train], axis=0).astype(int).tolist()
    return DataFacts(
        root=root.resolve(),
        is_segmentation=is_segmentation,
        classes=tuple(data.classes),
        palette=tuple(tuple(colour) for colour in class_colours(len(data.classes)).tolist()),
        num_train=len(train),
        num_val=len(data.splits['val']),
        num_empty=0 if is_segmentation else sum(not image.objects for image in train),
        has_masks=data.has_masks,
        has_test='test' in data.splits,
        image_size=(height, width),
        object_side=_object_side(data),
        image_suffix=suffixes[0],
    )


def _find_root(folder: Path) -> Path:
    for root in (folder, folder / COCO_FOLDER):
        if (root / 'annotations' / 'instances_train2017.json').is_file():
            return root
    for root in (folder, folder / ADE_FOLDER, folder / ADE_FOLDER.name):
        if (root / 'images' / 'training').is_dir() and (root / 'annotations' / 'training').is_dir():
            return root
    raise UserError(
        f'{folder} has neither the layout of COCO nor that of ADE20K (the page "Get started" describes both): '
        f'write it with `convnext-dense dataset convert {folder} OUT`'
    )


def _object_side(data: LabelledData) -> float | None:
    sides = []
    for image in data.splits['train']:
        for found in image.objects:
            x0, y0, x1, y1 = found.box
            sides.append(max((x1 - x0) * (y1 - y0), 0) ** 0.5)
    return float(np.median(sides)) if sides else None
