"""COCO: one JSON file per split. Read with Python's own reader, so that outlines stay the numbers that they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convnext_dense.dataset.records import (
    UNSPLIT,
    LabelledData,
    LabelledImage,
    Object,
    check_classes,
    image_files,
    place_file,
)
from convnext_dense.errors import UserError

# In the name of a JSON file or of the folders above it; Roboflow writes valid/.
SPLIT_NAMES = dict(
    train='train', training='train', val='val', valid='val', validation='val', test='test', testing='test'
)
# Where images lie, seen from the folder of the JSON file and the one above it: for COCO, Roboflow, CVAT, Label Studio.
IMAGE_FOLDERS = ('.', '{split}2017', '{split}', 'images/{split}', 'images/{split}2017', 'images')


def read_coco(source: Path, images: Path | None = None) -> LabelledData:
    """Read a COCO data set of boxes or outlines.

    Args:
        source: A JSON file, or a folder that holds some at any depth.
        images: The folder that the file names in the JSON files begin at; by default it is looked for.

    Returns:
        The data set; its classes are in the order of the category ids, which may have gaps.

    Raises:
        UserError: No file is COCO's, two files are of one split, ids or names do not agree, or images are missing.
    """
    files = [source] if source.is_file() else sorted(source.rglob('*.json'))
    contents = {file: content for file in files if (content := _read(file)) is not None}
    if not contents:
        raise UserError(f'{source} holds no COCO file (JSON with images, annotations, categories): check the path')
    data = LabelledData('detection', _classes(contents), {})
    for file, content in contents.items():
        split = split_of(file.relative_to(source.parent)) if len(contents) > 1 else split_of(Path(file.name))
        if split in data.splits:
            raise UserError(
                f'{file} and another file in {source} are both of the split {split!r}: give a folder with one '
                'COCO file per split'
            )
        root = images or _image_folder(file, split, content)
        data.splits[split] = _read_split(file, content, root, data.classes, data.losses)
    return data


def split_of(path: Path) -> str:
    """Return the split that the words of a path name, the last one first; :data:`UNSPLIT` if none does."""
    for word in reversed(re.findall(r'[a-z]+', path.as_posix().lower())):
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return UNSPLIT


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a COCO file; None for other JSON."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f'{file} is not valid JSON ({error}): write the file again') from error
    is_coco = isinstance(content, dict) and isinstance(content.get('images'), list) and 'categories' in content
    return content if is_coco else None


def _classes(contents: dict[Path, dict[str, Any]]) -> list[str]:
    """Return the class names in the order of their ids, which all files have to share."""
    names: dict[int, str] = {}
    for file, content in contents.items():
        for category in content['categories']:
            name = str(category['name'])
            if names.setdefault(category['id'], name) != name:
                raise UserError(
                    f'{file} gives the category id {category["id"]} to {name!r}, another file to '
                    f'{names[category["id"]]!r}: number the categories alike in all splits'
                )
    used = {found['category_id'] for content in contents.values() for found in content.get('annotations', ())}
    # Roboflow writes a category 0 that stands above all others and has no object.
    if 0 in names and 0 not in used and _is_parent(names[0], contents):
        del names[0]
    file = next(iter(contents))
    if unknown := used - set(names):
        raise UserError(f'{file} uses the category ids {sorted(unknown)[:5]}, which it does not define: add them')
    return check_classes([names[number] for number in sorted(names)], file)


def _is_parent(name: str, contents: dict[Path, dict[str, Any]]) -> bool:
    parents = {category.get('supercategory') for content in contents.values() for category in content['categories']}
    return name in parents


def _image_folder(file: Path, split: str, content: dict[str, Any]) -> Path:
    """Return the folder in which the first image of a COCO file lies."""
    if not content['images']:
        return file.parent
    first = content['images'][0]['file_name']
    for above in (file.parent, file.parent.parent):
        for pattern in IMAGE_FOLDERS:
            folder = above / pattern.format(split=split)
            if (folder / first).is_file():
                return folder
    raise UserError(
        f'{file} names the image {first}, which is not in {file.parent} or a folder next to it such as {split}2017: '
        'give --images FOLDER'
    )


def _read_split(
    file: Path, content: dict[str, Any], root: Path, classes: Sequence[str], losses: Counter[str]
) -> list[LabelledImage]:
    labels = {}
    for category in content['categories']:
        if str(category['name']) in classes:
            labels[category['id']] = classes.index(str(category['name']))
    present = {path.relative_to(root).as_posix() for path in image_files(root)}
    images: dict[Any, LabelledImage] = {}
    for entry in content['images']:
        name = Path(entry['file_name']).as_posix()
        if name not in present and not (root / name).is_file():
            raise UserError(f'{file} names the image {name}, which is not in {root}: check --images')
        if entry['id'] in images:
            raise UserError(f'{file} gives the image id {entry["id"]} twice: number the images')
        images[entry['id']] = LabelledImage(root / name, name, (int(entry['height']), int(entry['width'])))
    for found in content.get('annotations', ()):
        if found['image_id'] not in images:
            losses['annotations of an image id that the file does not list'] += 1
            continue
        if 'bbox' not in found:
            losses['annotations without a box'] += 1
            continue
        x, y, width, height = map(float, found['bbox'])
        segmentation = found.get('segmentation') or None
        images[found['image_id']].objects.append(
            Object(
                labels[found['category_id']], (x, y, x + width, y + height), segmentation, bool(found.get('iscrowd'))
            )
        )
    return list(images.values())


def write_coco(data: LabelledData, folder: Path, copy: bool) -> None:
    """Write a detection data set in COCO's layout: annotations/instances_SPLIT2017.json and SPLIT2017/.

    Category, image and annotation ids count from 1. Objects without an outline get none.

    Args:
        data: With named splits.
        folder: To write, such as OUT/coco.
        copy: Copy the images instead of linking to them.
    """
    (folder / 'annotations').mkdir(parents=True)
    categories = [dict(id=number, name=name) for number, name in enumerate(data.classes, start=1)]
    for split, images in data.splits.items():
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / f'{split}2017').mkdir()
        for image_id, image in enumerate(images, start=1):
            height, width = image.size
            entries.append(dict(id=image_id, file_name=image.name, height=height, width=width))
            place_file(image.path, folder / f'{split}2017' / image.name, copy)
            for found in image.objects:
                annotations.append(dict(_annotation(found), id=len(annotations) + 1, image_id=image_id))
        content = dict(images=entries, annotations=annotations, categories=categories)
        file = folder / 'annotations' / f'instances_{split}2017.json'
        file.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')


def _annotation(found: Object) -> dict[str, Any]:
    x0, y0, x1, y1 = found.box
    annotation: dict[str, Any] = dict(
        category_id=found.label + 1,
        bbox=[round(x0, 3), round(y0, 3), round(x1 - x0, 3), round(y1 - y0, 3)],
        area=area_of(found),
        iscrowd=int(found.is_crowd),
    )
    if found.segmentation:
        annotation['segmentation'] = found.segmentation
    return annotation


def area_of(found: Object) -> float:
    """Return the area of an object in pixels: of its outline if there is one, else of its box."""
    if isinstance(found.segmentation, dict):
        return float(decode_rle(found.segmentation).sum())
    if found.segmentation:
        return round(sum(polygon_area(polygon) for polygon in found.segmentation), 2)
    x0, y0, x1, y1 = found.box
    return round((x1 - x0) * (y1 - y0), 2)


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area of a polygon x0, y0, x1, y1, ... by the shoelace formula."""
    x, y = np.reshape(polygon, (-1, 2)).astype(float).T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Return the mask (height, width), uint8, of a run-length encoding, compressed or as a list of runs."""
    from pycocotools import mask as coco_mask  # comes with mmdet

    height, width = rle['size']
    if isinstance(rle['counts'], list):
        rle = coco_mask.frPyObjects(rle, height, width)
    return coco_mask.decode(rle)
