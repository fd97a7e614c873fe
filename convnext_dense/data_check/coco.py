"""Check a COCO annotation file: its structure, ids, categories, boxes and masks."""

from __future__ import annotations

import difflib
import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convnext_dense.data_check.coco_records import SECTIONS, coco_records
from convnext_dense.data_check.findings import Finding, FindingCollector

# COCO's own boxes stick out of their images by less, through rounding.
OUTSIDE_TOLERANCE = 1.0
# Corners written as [x1, y1, x2, y2] make boxes stick out by the dozen; single ones are careless drawing.
MAX_SHARE_STICKING_OUT = 0.2
# COCO itself has a few objects without a usable polygon; a file with more was not meant for masks.
MAX_SHARE_WITHOUT_MASK = 0.01
MAX_ID = 2**63


class ImageRecord(NamedTuple):
    """An entry of ``images``.

    Attributes:
        id: Id of the image.
        file_name: Path below the image folder.
        height, width: Size in pixels.
    """

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoRules:
    """What an annotation file is checked for.

    Attributes:
        classes: Names of the classes in the order of their labels.
        masks: Masks of objects are used.
        annotations_optional: Nothing is trained on or evaluated, as for COCO's test images.
        by_name: The data set and metric of this package read the file: they follow names and add what COCO defines.
        drops_empty: Images without an object of the classes are dropped (``filter_cfg.filter_empty_gt``).
        min_size: Images with a shorter side are dropped (``filter_cfg.min_size``).
        key: Where the data set is in the config.
    """

    classes: tuple[str, ...]
    masks: bool
    annotations_optional: bool
    by_name: bool
    drops_empty: bool
    min_size: int
    key: str


@dataclass
class _Columns:
    """What is kept of each annotation that has an id, an image, a category and a box of numbers.

    Attributes:
        ids, image_ids, category_ids: (N,).
        boxes: (4 N,), x, y, width and height in pixels.
        mask_extents: (4 N,), least x and y, largest x and y of the polygons; NaN without polygons.
        mask_sizes: (2 N,), height and width of a run-length encoding; 0 without one.
        usable: (N,), 0 if ``area`` or ``ignore`` makes mmdet drop the object.
    """

    ids: array = field(default_factory=lambda: array('q'))
    image_ids: array = field(default_factory=lambda: array('q'))
    category_ids: array = field(default_factory=lambda: array('q'))
    boxes: array = field(default_factory=lambda: array('d'))
    mask_extents: array = field(default_factory=lambda: array('d'))
    mask_sizes: array = field(default_factory=lambda: array('q'))
    usable: array = field(default_factory=lambda: array('b'))


Extent = tuple[float, float, float, float]
NO_EXTENT: Extent = (math.nan, math.nan, math.nan, math.nan)


def check_coco(path: Path, rules: CocoRules) -> tuple[list[Finding], list[ImageRecord]]:
    """Check an annotation file by itself, without opening images.

    Args:
        path: The JSON file.
        rules: What it is checked for.

    Returns:
        The findings, and the well-formed entries of ``images``.
    """
    collector = FindingCollector(path)
    check = _FileCheck(rules, collector)
    try:
        for section, record in coco_records(path):
            check.add(section, record)
    except json.JSONDecodeError as error:
        collector.add(
            f'the file is not valid JSON, or cut off: {error.msg} in line {error.lineno}, column {error.colno}',
            f'write the file again, or set {rules.key}.ann_file to a whole one',
        )
    except (OSError, ValueError, RecursionError) as error:
        collector.add(f'the file cannot be read: {error}', f'set {rules.key}.ann_file to a COCO file')
    else:
        check.finish()
    return collector.findings(), list(check.images.values())


class _FileCheck:
    """The state of one pass over an annotation file."""

    def __init__(self, rules: CocoRules, collector: FindingCollector) -> None:
        self.rules = rules
        self.collector = collector
        self.images: dict[int, ImageRecord] = {}
        self.categories: dict[int, str] = {}
        self.columns = _Columns()
        self.seen = dict.fromkeys(SECTIONS, 0)
        self.present: set[str] = set()
        self.missing_masks: list[str] = []

    def add(self, section: str, record: Any) -> None:
        """Check one record; see :func:`coco_records` for what stands for a section that is no list or empty."""
        self.present.add(section)
        if record is None:
            self.collector.add(f'{section!r} is no list', f'write {section!r} as a list of objects')
            return
        if record is ...:
            return
        self.seen[section] += 1
        if not isinstance(record, dict):
            self.collector.add(
                f'an entry of {section!r} is no object', 'correct or remove it', f'{section} entry {self.seen[section]}'
            )
            return
        if section == 'images':
            self._image(record)
        elif section == 'categories':
            self._category(record)
        else:
            self._annotation(record)

    def _image(self, record: dict) -> None:
        name = self._record_name('image', 'images', record)
        if not self._has_int(record, 'id', name):
            return
        if record['id'] in self.images:
            self.collector.add('the id of an image is used twice', 'give every image its own id', name)
            return
        file_name = record.get('file_name')
        if not isinstance(file_name, str) or not file_name:
            self.collector.add(
                "'file_name' is missing or no text", 'write the name of the file', f'{name}, file_name {file_name!r}'
            )
            return
        for key in ('height', 'width'):
            if not _is_int(record.get(key)) or record[key] <= 0:
                self.collector.add(
                    f'{key!r} is missing or no positive integer',
                    "write the size of the file's pixels",
                    f'{name}, {key} {record.get(key)!r}',
                )
                return
        self.images[record['id']] = ImageRecord(record['id'], file_name, record['height'], record['width'])

    def _category(self, record: dict) -> None:
        name = self._record_name('category', 'categories', record)
        if not self._has_int(record, 'id', name):
            return
        if not isinstance(record.get('name'), str):
            self.collector.add("'name' is missing or no text", 'write the name of the category', name)
            return
        if record['id'] in self.categories:
            self.collector.add('the id of a category is used twice', 'give every category its own id', name)
        elif record['name'] in self.categories.values():
            self.collector.add(
                'the name of a category is used twice', 'merge the two categories', f'{name}, name {record["name"]!r}'
            )
        else:
            self.categories[record['id']] = record['name']

    def _annotation(self, record: dict) -> None:
        name = self._record_name('annotation', 'annotations', record)
        for key in ('id', 'image_id', 'category_id'):
            if not self._has_int(record, key, name):
                return
        box = record.get('bbox')
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            self.collector.add(
                "'bbox' is missing or not four numbers", 'write [x, y, width, height]', f'{name}, bbox {_short(box)}'
            )
            return
        if not all(math.isfinite(value) for value in box):
            self.collector.add("'bbox' is not finite", 'correct or remove it', f'{name}, bbox {box}')
            return
        if not self._flags(record, name):
            return
        extent: Extent = NO_EXTENT
        size = (0, 0)
        if self.rules.masks and not record.get('ignore'):
            mask = self._mask(record.get('segmentation'), name)
            if mask is None:
                return
            extent, size = mask
        columns = self.columns
        columns.ids.append(record['id'])
        columns.image_ids.append(record['image_id'])
        columns.category_ids.append(record['category_id'])
        columns.boxes.extend(box)
        columns.mask_extents.extend(extent)
        columns.mask_sizes.extend(size)
        columns.usable.append(record.get('area', 1) > 0 and not record.get('ignore'))

    def _flags(self, record: dict, name: str) -> bool:
        """Check ``area`` and ``iscrowd``, which may be missing; return whether both can be used."""
        if 'area' not in record:
            self._default("'area' is missing", 'it is taken from the mask or the box', 'write it', name)
        elif not _is_number(record['area']) or not math.isfinite(record['area']) or record['area'] < 0:
            self.collector.add("'area' is no number from 0", 'correct it', f'{name}, area {_short(record["area"])}')
            return False
        elif record['area'] == 0:
            self.collector.add("'area' is 0: the object is not trained on", '', name, fatal=False)
        if 'iscrowd' not in record:
            self._default("'iscrowd' is missing", 'it is taken as 0', 'write "iscrowd": 0', name)
        elif record['iscrowd'] not in (0, 1) or isinstance(record['iscrowd'], float):
            self.collector.add(
                "'iscrowd' is neither 0 nor 1", 'correct it', f'{name}, iscrowd {_short(record["iscrowd"])}'
            )
            return False
        return True

    def _default(self, what: str, treatment: str, fix: str, name: str) -> None:
        """Report something that COCO defines a value for, which the data set of this package fills in."""
        if self.rules.by_name:
            self.collector.add(f'{what}: {treatment}', '', name, fatal=False)
        else:
            self.collector.add(f'{what}, which the type of this data set needs', fix, name)

    def _mask(self, mask: Any, name: str) -> tuple[Extent, tuple[int, int]] | None:
        """Check a mask by itself.

        Returns:
            Extent of the polygons and size of a run-length encoding, as in :class:`_Columns`; None if the mask is
            malformed.
        """
        if isinstance(mask, dict):
            problem = _run_length_problem(mask)
            if problem:
                self.collector.add(problem, 'encode the mask again', name)
                return None
            return NO_EXTENT, (mask['size'][0], mask['size'][1])
        if mask is not None and not isinstance(mask, list):
            self.collector.add(
                "'segmentation' is neither polygons nor a run-length encoding",
                'write [[x1, y1, x2, y2, x3, y3, ...], ...]',
                f'{name}, segmentation {_short(mask)}',
            )
            return None
        xs: list[float] = []
        ys: list[float] = []
        for polygon in mask or []:
            if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
                self.collector.add(
                    'a polygon is no list of numbers',
                    'write [[x1, y1, x2, y2, x3, y3, ...], ...]',
                    f'{name}, polygon {_short(polygon)}',
                )
                return None
            if not math.isfinite(sum(polygon)):
                self.collector.add('a polygon is not finite', 'correct or remove it', name)
                return None
            if len(polygon) % 2:
                self.collector.add(
                    'a polygon has an odd number of values',
                    'write an x and a y for every corner',
                    f'{name}, {len(polygon)} values',
                )
                return None
            if len(polygon) >= 6:
                xs += min(polygon[0::2]), max(polygon[0::2])
                ys += min(polygon[1::2]), max(polygon[1::2])
            elif mask != [polygon]:
                self._default(
                    'a polygon has fewer than three corners', 'that polygon is dropped', 'remove that polygon', name
                )
        if not xs:
            self.missing_masks.append(f'{name}, segmentation {_short(mask)}')
            return NO_EXTENT, (0, 0)
        return (min(xs), min(ys), max(xs), max(ys)), (0, 0)

    def finish(self) -> None:
        """Check what needs the whole file."""
        for section in SECTIONS:
            optional = section == 'annotations' and self.rules.annotations_optional
            if not self.seen[section] and not optional:
                found = 'is empty' if section in self.present else 'is missing'
                self.collector.add(
                    f'{section!r} {found}, so the file is no COCO file of objects',
                    f'set {self.rules.key}.ann_file to one with images, annotations and categories',
                )
        if self.categories:
            self._names()
        if self.seen['annotations']:
            self._missing_masks()
        if self.columns.ids and self.images:
            self._geometry()

    def _names(self) -> None:
        """Check names of classes against categories."""
        names = list(self.categories.values())
        missing = [name for name in self.rules.classes if name not in names]
        for name in missing:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f', did you mean {close[0]!r}?' if close else ''
            self.collector.add(
                f'the class {name!r} of metainfo.classes is no category of the file, which has {_some(names)}{hint}',
                f'set {self.rules.key}.metainfo.classes to names of the file, and num_classes of every head to match',
            )
        order = [name for name in names if name in self.rules.classes]
        if not missing and order != list(self.rules.classes):
            self._default(
                f'categories stand in another order ({_some(order)}) than metainfo.classes '
                f'({_some(self.rules.classes)})',
                'labels follow the names',
                f'give {self.rules.key}.metainfo.classes the order of the file',
                '',
            )

    def _missing_masks(self) -> None:
        """Report objects without a mask; many of them mean that the file holds boxes only."""
        total, missing = self.seen['annotations'], self.missing_masks
        if not missing:
            return
        many = len(missing) > MAX_SHARE_WITHOUT_MASK * total
        for name in missing:
            if many or not self.rules.by_name:
                self.collector.add(
                    f"{len(missing)} of {total} annotations have no 'segmentation' that can be used (a polygon has at "
                    'least three corners), but masks are used',
                    f'add them or remove those annotations; to train on boxes alone set with_mask=False in '
                    f'{self.rules.key}.pipeline, mask_head=None, and metric="bbox"',
                    name,
                )
            else:
                self.collector.add(
                    'no mask that can be used: the box becomes a crowd region, which is ignored', '', name, fatal=False
                )

    def _geometry(self) -> None:
        """Check ids, boxes and masks of all annotations against images and categories."""
        columns = self.columns
        ids = np.array(columns.ids, np.int64)
        image_ids = np.array(columns.image_ids, np.int64)
        category_ids = np.array(columns.category_ids, np.int64)
        boxes = np.array(columns.boxes).reshape(-1, 4)

        def report(where: np.ndarray, what: str, fix: str, detail: np.ndarray | None = None) -> None:
            for index in np.flatnonzero(where).tolist():
                more = '' if detail is None else f', {detail[index].tolist()}'
                self.collector.add(what, fix, f'annotation {ids[index]}{more}', fatal=True)

        unique, counts = np.unique(ids, return_counts=True)
        report(np.isin(ids, unique[counts > 1]), 'the id is used twice', 'give every annotation its own id')
        if 0 in unique:
            self._default(
                'pycocotools ignores an object with the id 0', 'it gets a new id', 'count ids from 1', 'annotation 0'
            )
        report(
            np.isin(category_ids, list(self.categories), invert=True),
            'the category_id is not in categories',
            'correct it or add the category',
            category_ids,
        )
        known: np.ndarray = np.isin(image_ids, list(self.images))
        report(~known, 'the image_id is not in images', 'correct it or add the image', image_ids)

        used_categories = [id_ for id_, name in self.categories.items() if name in self.rules.classes]
        used = np.isin(category_ids, used_categories)
        sizes = np.full((len(ids), 2), np.nan)  # width, height
        sizes[known] = [(self.images[id_].width, self.images[id_].height) for id_ in image_ids[known].tolist()]
        negative = np.asarray((boxes[:, 2:] < 0).any(1))
        report(negative, "'bbox' has a negative width or height", 'write [x, y, width, height]', boxes)
        thin = ~negative & (boxes[:, 2:] < 1).any(1) & used
        for index in np.flatnonzero(thin).tolist():
            self.collector.add(
                'the box is less than a pixel: it is not trained on', '', f'annotation {ids[index]}', fatal=False
            )
        self._inside(ids, boxes, sizes, known & ~negative & ~thin)
        self._masks_inside(ids, sizes, known)
        kept = used & known & ~thin & ~negative & np.array(columns.usable, bool)
        self._filter(image_ids[used], kept)

    def _inside(self, ids: np.ndarray, boxes: np.ndarray, sizes: np.ndarray, checked: np.ndarray) -> None:
        """Check that boxes (N, 4) lie inside images of ``sizes`` (N, 2) as width and height."""
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        overlap = np.minimum(high, sizes) - np.maximum(low, 0)  # width and height of the part inside
        outside = checked & (overlap <= 0).any(1)
        sticks_out = checked & ~outside & ((low < -OUTSIDE_TOLERANCE) | (high > sizes + OUTSIDE_TOLERANCE)).any(1)
        many = sticks_out.sum() > MAX_SHARE_STICKING_OUT * max(checked.sum(), 1)
        for index in np.flatnonzero(outside | sticks_out).tolist():
            width, height = (int(side) for side in sizes[index])
            record = f'annotation {ids[index]}, bbox {boxes[index].tolist()} in an image of {width} x {height}'
            if outside[index]:
                self.collector.add('the box lies outside its image', 'correct or remove it', record)
            elif many:
                self.collector.add(
                    f'{sticks_out.sum()} of {checked.sum()} boxes stick out of their images',
                    "'bbox' is [x, y, width, height]: are these corners, or boxes of images of another size?",
                    record,
                )
            else:
                self._default('the box sticks out of its image', 'it is clipped', 'clip it', record)

    def _masks_inside(self, ids: np.ndarray, sizes: np.ndarray, known: np.ndarray) -> None:
        """Check polygons and run-length encodings against the sizes (N, 2) of their images, as width and height."""
        extents = np.array(self.columns.mask_extents).reshape(-1, 4)
        mask_sizes = np.array(self.columns.mask_sizes, np.int64).reshape(-1, 2)[:, ::-1]  # width, height
        # A polygon far outside would take memory for its whole outline.
        with np.errstate(invalid='ignore'):
            far = (extents[:, :2] < -sizes) | (extents[:, 2:] > 2 * sizes)
            outside = (extents[:, 2:] < 0) | (extents[:, :2] > sizes)
        other_size = known & (mask_sizes > 0).all(1) & (mask_sizes != sizes).any(1)
        for index in np.flatnonzero(known & (far | outside).any(1)).tolist():
            record = (
                f'annotation {ids[index]}, x and y from {extents[index, :2].tolist()} to {extents[index, 2:].tolist()}'
            )
            self.collector.add('the polygons lie outside their image', 'correct or remove them', record)
        for index in np.flatnonzero(other_size).tolist():
            (mask_width, mask_height), (width, height) = mask_sizes[index].tolist(), sizes[index].astype(int).tolist()
            self.collector.add(
                "'size' of the run-length encoding is not that of the image",
                'encode the mask again; size is [height, width]',
                f'annotation {ids[index]}, {[mask_height, mask_width]} instead of {[height, width]}',
            )

    def _filter(self, used_image_ids: np.ndarray, kept: np.ndarray) -> None:
        """Check that images and objects are left for the filter of mmdet's ``CocoDataset.filter_data``."""
        rules = self.rules
        with_objects = set(used_image_ids.tolist())
        empty = [image for image in self.images.values() if image.id not in with_objects]
        small = [image for image in self.images.values() if min(image.height, image.width) < rules.min_size]
        dropped = {image.id for image in [*(empty if rules.drops_empty else []), *small]}
        if self.images and len(dropped) == len(self.images):
            self.collector.add(
                f'{rules.key}.filter_cfg drops every image: of {len(self.images)}, {len(small)} are smaller than '
                f'min_size={rules.min_size} and {len(empty)} have no object of the classes {_some(rules.classes)}',
                f'change {rules.key}.filter_cfg or {rules.key}.metainfo.classes',
            )
        elif not kept.any() and self.categories:
            self.collector.add(
                f'no annotation can be used for the classes {_some(rules.classes)}',
                f'set {rules.key}.ann_file or {rules.key}.metainfo.classes',
            )

    def _has_int(self, record: dict, key: str, name: str) -> bool:
        """Return whether a record has an integer under ``key``; report it if not."""
        value = record.get(key)
        if isinstance(value, int) and _is_int(value) and abs(value) < MAX_ID:
            return True
        what = f'{key!r} is missing' if key not in record else f'{key!r} is no integer'
        self.collector.add(what, 'correct it', name if key not in record else f'{name}, {key} {_short(value)}')
        return False

    def _record_name(self, kind: str, section: str, record: dict) -> str:
        id_ = record.get('id')
        return f'{kind} {id_}' if _is_int(id_) else f'entry {self.seen[section]} of {section}'


def _is_int(value: Any) -> bool:
    return type(value) is int  # a bool is no id


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _short(value: Any) -> str:
    """Return the beginning of a value as text."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _some(names: Sequence[str]) -> str:
    """Return the first names as text."""
    return ', '.join(names[:5]) + (f', ... ({len(names)} in all)' if len(names) > 5 else '')


def _run_length_problem(mask: dict) -> str | None:
    """Return what is wrong with a run-length encoding by itself; None if it decodes."""
    size, counts = mask.get('size'), mask.get('counts')
    if not (isinstance(size, list) and len(size) == 2 and all(_is_int(side) and side > 0 for side in size)):
        return "'size' of the run-length encoding is not [height, width]"
    if isinstance(counts, str):
        lengths = run_lengths(counts)
        if lengths is None:
            return "'counts' of the run-length encoding is cut off or no text of pycocotools"
    elif isinstance(counts, list) and all(_is_int(count) for count in counts):
        lengths = counts
    else:
        return "'counts' of the run-length encoding is missing or no list of integers"
    if any(count < 0 for count in lengths) or sum(lengths) != size[0] * size[1]:
        return "'counts' of the run-length encoding do not sum up to height x width"
    return None


def run_lengths(text: str) -> list[int] | None:
    """Decode ``counts`` of COCO's compressed run-length encoding.

    A number has 5 bits per character, low ones first; bit 5 says that more follow, bit 4 of the last one is the sign.
    From the fourth on, numbers are differences to the second last (``rleFrString`` in pycocotools' maskApi.c).

    Returns:
        The lengths of the runs; None if the text is cut off or has other characters.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    return None if shift else lengths
