"""YOLO as ultralytics writes it: ``data.yaml``, and a text file per image with a line per box or polygon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml

from convnext_dense.dataset.coco import decode_rle
from convnext_dense.dataset.extra import supervision_parser
from convnext_dense.dataset.records import (
    SPLITS,
    LabelledData,
    LabelledImage,
    Object,
    check_classes,
    check_stems,
    image_files,
    image_size,
    place_file,
)
from convnext_dense.errors import UserError

BOX_VALUES = (5, 6)  # of a line: class, box, and what tools append, a score or an id of a track


def read_yolo(source: Path) -> LabelledData:
    """Read a YOLO data set of boxes or polygons.

    Args:
        source: ``data.yaml``, or the folder that holds one YAML file with ``names``.

    Raises:
        UserError: There is no such file, or a label file or an image cannot be read.
    """
    file = source if source.is_file() else _find_yaml(source)
    content = yaml.safe_load(file.read_text(encoding='utf-8'))
    names = content['names']
    # Class ids may have gaps: {0: 'cat', 2: 'dog'}.
    names = dict(enumerate(names)) if isinstance(names, list) else {int(number): name for number, name in names.items()}
    classes = check_classes([str(names[number]) for number in sorted(names)], file)
    label_of_id = {number: label for label, number in enumerate(sorted(names))}
    data = LabelledData('detection', classes, {})
    root = Path(content.get('path') or '.')
    root = root if root.is_absolute() else file.parent / root
    if not root.is_dir():
        root = file.parent  # `path` is often a folder of the machine that wrote the file
    pose_values = int(np.prod(content.get('kpt_shape') or 0))
    for split in SPLITS:
        entries = content.get(split) or ()
        images = []
        for entry in [entries] if isinstance(entries, str) else entries:
            images += _read_folder(_resolve(root, file.parent, entry), label_of_id, pose_values, data.losses)
        if images:
            data.splits[split] = images
    if not data.splits:
        raise UserError(f'{file} names no images under train, val or test: add the folders')
    return data


def _find_yaml(folder: Path) -> Path:
    files = [
        path for path in sorted(folder.glob('*.y*ml')) if 'names' in (yaml.safe_load(path.read_text('utf-8')) or {})
    ]
    if len(files) != 1:
        raise UserError(f'{folder} holds {len(files)} YAML files with `names`, wanted one: give the path of data.yaml')
    return files[0]


def _resolve(root: Path, folder: Path, entry: str) -> Path:
    """Return the folder or list that ``train`` or ``val`` names; Roboflow writes ``../train/images`` and means ./."""
    for path in (root / entry, folder / entry, folder / entry.removeprefix('../')):
        if path.exists():
            return path
    raise UserError(f'data.yaml names {entry}, which is not in {root}: correct `path` or the entry')


def _read_folder(
    place: Path, label_of_id: dict[int, int], pose_values: int, losses: Counter[str]
) -> list[LabelledImage]:
    if place.is_file():  # a text file that lists images
        lines = [line.strip() for line in place.read_text(encoding='utf-8').splitlines() if line.strip()]
        files = [place.parent / line for line in lines]
        root = place.parent
    else:
        files, root = image_files(place), place
    images = []
    for path in files:
        name = Path(path.relative_to(root) if path.is_relative_to(root) else path.name).as_posix()
        image = LabelledImage(path, name, image_size(path))
        labels = label_file(path)
        if labels.is_file():
            image.objects = _read_labels(labels, image.size, label_of_id, pose_values, losses)
        images.append(image)
    return images


def label_file(image: Path) -> Path:
    """Return the label file of an image: in ``labels`` instead of its last folder ``images``, as in ultralytics."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == 'images':
            parts[i] = 'labels'
            break
    return Path(*parts).with_suffix('.txt')


def _read_labels(
    file: Path, size: tuple[int, int], label_of_id: dict[int, int], pose_values: int, losses: Counter[str]
) -> list[Object]:
    lines = [line for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
    height, width = size
    if pose_values:
        for i, line in enumerate(lines):
            if len(line.split()) == 5 + pose_values:
                lines[i] = ' '.join(line.split()[:5])
                losses['sets of key points, of which the boxes are read'] += 1
    try:
        found = supervision_parser('yolo').yolo_annotations_to_detections(lines, (width, height), with_masks=False)
    except ValueError as error:
        raise UserError(f'{file}: {error}') from error
    objects = []
    for i, line in enumerate(lines):
        values = line.split()
        class_id = int(found.class_id[i])
        if class_id not in label_of_id:
            raise UserError(f'{file} holds the class id {class_id}, which data.yaml does not name: correct one of them')
        polygon = None
        if len(values) not in BOX_VALUES:
            count = (len(values) - 1) // 2 * 2  # an odd value more is a score
            points = np.array(values[1 : 1 + count], float).reshape(-1, 2) * (width, height)
            polygon = [points.round(3).flatten().tolist()]
        box = tuple(float(value) for value in found.xyxy[i])
        objects.append(Object(label_of_id[class_id], box, polygon))  # type: ignore[arg-type]
    return objects


def write_yolo(data: LabelledData, folder: Path, copy: bool, place: Path) -> None:
    """Write data.yaml, images/SPLIT and labels/SPLIT for ultralytics; count in ``data.losses`` what YOLO cannot hold.

    Args:
        data: Of objects, with named splits.
        folder: To write.
        copy: Copy the images instead of linking to them.
        place: Where the folder will be in the end: ultralytics looks elsewhere for a path that is not absolute.
    """
    line_of = supervision_parser('yolo').object_to_yolo
    for split, images in data.splits.items():
        check_stems(images, 'label')
        for image in images:
            place_file(image.path, folder / 'images' / split / image.name, copy)
            lines = []
            for found in image.objects:
                if found.is_crowd:
                    data.losses['crowds, which YOLO does not have: left out'] += 1
                    continue
                polygon = _one_polygon(found, data.losses)
                lines.append(line_of(np.array(found.box), found.label, image.size, polygon))
            _count_mixture(image, data.losses)
            labels = (folder / 'labels' / split / image.name).with_suffix('.txt')
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    folders = {split: f'images/{split}' for split in data.splits}
    content = dict(path=str(place.resolve()), **folders, names=dict(enumerate(data.classes)))
    (folder / 'data.yaml').write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding='utf-8')


def _one_polygon(found: Object, losses: Counter[str]) -> np.ndarray | None:
    """Return the outline of an object as one polygon (N, 2) in pixels; None for a box."""
    if not found.segmentation:
        return None
    if isinstance(found.segmentation, dict):
        polygons = _contours(decode_rle(found.segmentation), losses)
    else:
        polygons = [np.reshape(polygon, (-1, 2)).astype(float) for polygon in found.segmentation]
    if not polygons:
        losses['empty masks, of which the boxes are written'] += 1
        return None
    if len(polygons) > 1:
        losses['objects of several parts, written as one polygon with seams of no width between the parts'] += 1
    return join_parts(polygons)


def join_parts(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return one polygon (N, 2) that goes around each part and returns to the first point of the first part."""
    start = polygons[0][:1]
    joined = [polygons[0]]
    for part in polygons[1:]:
        joined += [start, part, part[:1]]
    if len(polygons) > 1:
        joined.append(start)
    return np.concatenate(joined)


def _contours(mask: np.ndarray, losses: Counter[str]) -> list[np.ndarray]:
    """Return the outer contours of a mask, in pixels from its corner; holes are counted and filled."""
    # Traced on a mask of twice the size, a contour runs within half a pixel of the edge.
    enlarged = mask.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for i, contour in enumerate(contours):
        if hierarchy[0][i][3] >= 0:  # has a contour around it
            losses['holes in masks, which YOLO does not have: filled'] += 1
        elif len(contour) > 2:
            polygons.append((contour[:, 0] + 0.5) / 2)  # (N, 1, 2) -> (N, 2)
    return polygons


def _count_mixture(image: LabelledImage, losses: Counter[str]) -> None:
    outlined = {bool(found.segmentation) for found in image.objects if not found.is_crowd}
    if len(outlined) == 2:
        losses['images with boxes and polygons, of which ultralytics uses the boxes alone'] += 1


def is_yolo(source: Path) -> bool:
    """Return whether ``source`` is a YAML file with class names, or a folder with one."""
    if source.is_file():
        return source.suffix in ('.yaml', '.yml')
    return any('names' in (yaml.safe_load(path.read_text('utf-8')) or {}) for path in source.glob('*.y*ml'))
