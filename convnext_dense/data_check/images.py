"""Check image files against the sizes that annotations were made for, from their headers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from convnext_dense.data_check.findings import Finding, FindingCollector
from convnext_dense.data_check.parallel import map_files

ORIENTATION_TAG = 0x0112  # of EXIF; 1 is upright, 5 to 8 exchange height and width
# How a complete file ends, and how many bytes from its end that is looked for.
FILE_ENDS = {'JPEG': (b'\xff\xd9', 2), 'PNG': (b'IEND', 12)}


class ImageFacts(NamedTuple):
    """What the header of an image file says.

    Attributes:
        height, width: Size in pixels before it is turned; 0 if unknown.
        orientation: EXIF orientation, 1 to 8.
        problem: Why the file cannot be used; empty if it can.
    """

    height: int = 0
    width: int = 0
    orientation: int = 1
    problem: str = ''

    def loaded_size(self, obeys_orientation: bool) -> tuple[int, int]:
        """Return height and width of the image as the pipeline loads it."""
        turned = obeys_orientation and self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


def image_facts(path: str, decode: bool = False) -> ImageFacts:
    """Read the header of an image file; pixels are decoded if asked for, or if the file does not end as it should."""
    try:
        with Path(path).open('rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow warns of large images
            return _facts_of(file, decode)
    except FileNotFoundError:
        return ImageFacts(problem='the image file does not exist')
    except UnidentifiedImageError:
        return _facts_by_opencv(path)
    except Image.DecompressionBombError:
        return _facts_by_opencv(path)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        return ImageFacts(problem=f'the image file cannot be read or is cut off: {error}')


def _facts_of(file: BinaryIO, decode: bool) -> ImageFacts:
    with Image.open(file) as image:
        width, height = image.size
        # Without the condition Pillow decodes a whole PNG to look for EXIF data behind the pixels.
        orientation = image.getexif().get(ORIENTATION_TAG, 1) if 'exif' in image.info else 1
        if decode or not _ends_properly(file, image.format):
            image.load()
    return ImageFacts(height, width, orientation if orientation in range(1, 9) else 1)


def _ends_properly(file: BinaryIO, format_: str | None) -> bool:
    """Return whether a file ends as its format asks for; True for formats without such an end."""
    if format_ not in FILE_ENDS:
        return True
    mark, distance = FILE_ENDS[format_]
    position = file.tell()
    file.seek(-distance, 2)
    found = mark in file.read()
    file.seek(position)
    return found


def _facts_by_opencv(path: str) -> ImageFacts:
    """Decode a file that Pillow does not know or finds too large, as mmcv does."""
    content = np.fromfile(path, np.uint8)
    if not content.size:
        return ImageFacts(problem='the image file is empty (0 bytes)')
    image = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        return ImageFacts(problem='the file is no image')
    return ImageFacts(*image.shape[:2])


class SizedImage(NamedTuple):
    """An image file and the size that its annotations were made for.

    Attributes:
        path: The file.
        record: How the annotation file calls it.
        height, width: The size that the annotation file says.
    """

    path: str
    record: str
    height: int
    width: int


def check_images(
    images: Sequence[SizedImage], annotation_file: str, key: str, obeys_orientation: bool, decode: bool
) -> list[Finding]:
    """Check that image files can be read and have the sizes of the annotation file.

    Args:
        images: Files and sizes.
        annotation_file: Where the sizes are from.
        key: Where the data set is in the config.
        obeys_orientation: Images are turned by their EXIF orientation when they are loaded.
        decode: Decode all pixels instead of reading headers.
    """
    collector = FindingCollector(annotation_file)
    facts = map_files(functools.partial(image_facts, decode=decode), [image.path for image in images], 'images')
    for image, fact in zip(images, facts, strict=True):
        record = f'{image.record}, {image.path}'
        if fact.problem:
            collector.add(
                fact.problem,
                f'restore the file, or remove it from the annotation file; {key}.data_prefix is its folder',
                record,
            )
            continue
        wanted = (image.height, image.width)
        turned = (fact.width, fact.height)
        if fact.loaded_size(obeys_orientation) == wanted:
            if obeys_orientation and fact.orientation > 1 and (fact.orientation < 5 or fact.height == fact.width):
                collector.add(
                    f'the EXIF orientation {fact.orientation} turns or mirrors the image when it is loaded, and the '
                    'size does not tell whether the annotations were made for that',
                    record=record,
                    fatal=False,
                )
        elif fact.orientation >= 5 and wanted in (turned, (fact.height, fact.width)):
            how = 'color_ignore_orientation' if obeys_orientation else 'color'
            turns = 'turns' if obeys_orientation else 'would turn'
            collector.add(
                f'the EXIF orientation {turns} the image, but the annotations were made for the other direction',
                f"set color_type='{how}' of LoadImageFromFile in {key}.pipeline",
                f'{record}, orientation {fact.orientation}',
            )
        else:
            found = fact.loaded_size(obeys_orientation)
            collector.add(
                'height and width of the file are not those of the annotation file',
                'correct height and width, and the annotations if they were made for another size',
                f'{record}, {found[0]} x {found[1]} instead of {wanted[0]} x {wanted[1]}',
            )
    return collector.findings()
