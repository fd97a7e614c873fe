"""LabelMe: a JSON file per image with rectangles and polygons."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Any

from convnext_dense.dataset.extra import supervision_parser
from convnext_dense.dataset.records import UNSPLIT, LabelledData, LabelledImage, Object, check_classes, image_size
from convnext_dense.errors import UserError


def read_labelme(source: Path, images: Path | None = None) -> LabelledData:
    """Read a LabelMe data set.

    Polygons of one label and one group are one object of several parts. Shapes other than rectangles and polygons
    (circles, lines, points) are counted and left out.

    Args:
        source: A folder with JSON files at any depth.
        images: The folder of the images; by default each is where its JSON file says.

    Raises:
        UserError: A file cannot be read, or its image is missing.
    """
    contents = {file: content for file in sorted(source.rglob('*.json')) if (content := _read(file)) is not None}
    types = supervision_parser('labelme').SUPPORTED_SHAPE_TYPES
    shapes = [shape for content in contents.values() for shape in content['shapes'] if shape.get('shape_type') in types]
    classes = check_classes(sorted({str(shape.get('label')) for shape in shapes}), source)
    data = LabelledData('detection', classes, {UNSPLIT: []})
    for file, content in contents.items():
        path = _image_of(file, content, images)
        root = images or source
        name = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        image = LabelledImage(path, name.as_posix(), image_size(path))
        image.objects = _read_objects(file, content['shapes'], image.size, classes, data.losses)
        data.splits[UNSPLIT].append(image)
    return data


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a LabelMe file; None for other JSON."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f'{file} is not valid JSON ({error}): write the file again') from error
    return content if is_labelme(content) else None


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is LabelMe's."""
    return isinstance(content, dict) and 'shapes' in content and 'imagePath' in content


def _image_of(file: Path, content: dict[str, Any], images: Path | None) -> Path:
    """Return the image of a file: at the path that it holds, or of that name in the folder ``images``."""
    parts = PureWindowsPath(content['imagePath'])  # splits at both / and \
    path = images / parts.name if images else file.parent / Path(*parts.parts)
    if not path.is_file() and (file.parent / parts.name).is_file():
        path = file.parent / parts.name
    return path.resolve() if '..' in path.parts else path


def _read_objects(
    file: Path, shapes: list[dict[str, Any]], size: tuple[int, int], classes: list[str], losses: Counter[str]
) -> list[Object]:
    parser = supervision_parser('labelme')
    kept = []
    for shape in shapes:
        if shape.get('shape_type') in parser.SUPPORTED_SHAPE_TYPES:
            kept.append(dict(shape, label=str(shape.get('label'))))
        else:
            losses[f'shapes of the type {shape.get("shape_type")}: left out'] += 1
    height, width = size
    label_of = {name: label for label, name in enumerate(classes)}
    try:
        found = parser.labelme_shapes_to_detections(kept, label_of, (width, height), with_masks=False)
    except ValueError as error:
        raise UserError(f'{file}: {error}') from error
    outlines = _outlines(kept)
    objects = []
    for i in range(len(found)):
        box = tuple(float(value) for value in found.xyxy[i])
        objects.append(Object(int(found.class_id[i]), box, outlines[i] or None))  # type: ignore[arg-type]
    return objects


def _outlines(shapes: list[dict[str, Any]]) -> list[list[list[float]]]:
    """Return the polygons of each object, in the order of supervision's objects: that of their first shapes."""
    outlines: list[list[list[float]]] = []
    of_group: dict[tuple[str, Any], list[list[float]]] = {}
    for shape in shapes:
        group = shape.get('group_id')
        polygons = of_group.get((shape['label'], group)) if group is not None else None
        if polygons is None:
            polygons = []
            outlines.append(polygons)
            if group is not None:
                of_group[shape['label'], group] = polygons
        if shape['shape_type'] == 'polygon':
            polygons.append([float(value) for point in shape['points'] for value in point])
    return outlines
