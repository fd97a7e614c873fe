"""Labelled images, as every reader returns and every writer takes them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from convnext_dense.errors import UserError
from convnext_dense.images import SUFFIXES

Kind = Literal['detection', 'segmentation']
# COCO's: polygons x0, y0, x1, y1, ... in pixels, or a run-length encoding dict(size, counts).
Segmentation = list[list[float]] | dict[str, Any]

UNSPLIT = 'all'  # the split of a format that has none
SPLITS = ('train', 'val', 'test')

EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height


@dataclass
class Object:
    """One object in an image.

    Attributes:
        label: Index into the classes of the data set.
        box: x0, y0, x1, y1 in pixels.
        segmentation: Its outline, or None: a reader makes none of a box.
        is_crowd: Whether the box holds a group that was not labelled one by one.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: Segmentation | None = None
    is_crowd: bool = False


@dataclass
class LabelledImage:
    """An image with its labels.

    Attributes:
        path: The image file.
        name: Path in the data set, with sub-folders and '/' between them.
        size: Height and width in pixels, turned by the EXIF orientation.
        objects: Of a detection data set.
        label_map: The PNG of a segmentation data set, a class index per pixel; 255 is ignored.
    """

    path: Path
    name: str
    size: tuple[int, int]
    objects: list[Object] = field(default_factory=list)
    label_map: Path | None = None


@dataclass
class LabelledData:
    """A data set.

    Attributes:
        kind: Objects with boxes, or a class for every pixel.
        classes: Names, in the order of the labels.
        splits: The images of 'train', 'val' and 'test', or of :data:`UNSPLIT`.
        losses: What a reader could not read or a writer could not write, and how often.
    """

    kind: Kind
    classes: list[str]
    splits: dict[str, list[LabelledImage]]
    losses: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> list[LabelledImage]:
        """The images of all splits."""
        return [image for images in self.splits.values() for image in images]

    @property
    def has_masks(self) -> bool:
        """Whether every object that is not a crowd has an outline; False without any object."""
        objects = [found for image in self.images for found in image.objects if not found.is_crowd]
        return bool(objects) and all(found.segmentation for found in objects)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file in pixels, turned by its EXIF orientation.

    Raises:
        UserError: The file does not exist or is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            is_turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    except FileNotFoundError:
        raise UserError(f'the labels name the image {path}, which does not exist: check the folder') from None
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f'{path} cannot be read as an image ({error}): remove it or its labels') from error
    return (width, height) if is_turned else (height, width)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and below it, in the order of their names."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)


def check_classes(classes: Sequence[str], source: Path) -> list[str]:
    """Return the class names as they are.

    Raises:
        UserError: There is none, or one occurs twice: two classes of one name would be merged.
    """
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(f'{source} names the classes {", ".join(twice)} more than once: give each its own name')
    if not classes:
        raise UserError(f'{source} names no class: label at least one object, or name the classes')
    return list(classes)


def check_new_folder(folder: Path) -> None:
    """Raise UserError unless ``folder`` does not exist or is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f'{folder} exists and is not an empty folder: nothing was written, give a new folder')


def place_file(path: Path, target: Path, copy: bool) -> None:
    """Copy a file to ``target``, or link to it by its full path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(path, target)
    else:
        target.symlink_to(path.resolve())


def check_stems(images: Iterable[LabelledImage], written: str) -> None:
    """Raise UserError if two images differ in their suffix only: their ``written`` files would have one name."""
    found: dict[str, str] = {}
    for image in images:
        stem = image.name.rpartition('.')[0]
        if stem in found:
            raise UserError(
                f'{found[stem]} and {image.name} would have one {written} file: rename one of the two images'
            )
        found[stem] = image.name


def polygon_box(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the box x0, y0, x1, y1 around polygons x0, y0, x1, y1, ... in pixels."""
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons]).astype(float)
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x0, y0, x1, y1
