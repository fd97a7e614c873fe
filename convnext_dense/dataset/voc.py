"""Pascal VOC: an XML file per image, as labelImg, CVAT and Roboflow write it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from convnext_dense.dataset.extra import safe_xml, supervision_parser
from convnext_dense.dataset.records import (
    SPLITS,
    UNSPLIT,
    LabelledData,
    LabelledImage,
    Object,
    check_classes,
    image_files,
    image_size,
)
from convnext_dense.errors import UserError

SPLIT_LISTS = 'ImageSets/Main'


def read_voc(source: Path, images: Path | None = None) -> LabelledData:
    """Read a Pascal VOC data set: boxes, and polygons where a tool wrote some.

    Coordinates are those of the devkit: pixels are counted from 1 and a box holds both of its ends, so that x from 1 to
    10 is 0 to 10 here.

    Args:
        source: A folder with XML files at any depth; ``ImageSets/Main/train.txt`` and the like name the splits.
        images: The folder of the images; by default ``source``.

    Raises:
        UserError: An XML file cannot be read, or its image is missing.
    """
    image_root = images or source
    files_by_name: dict[str, list[Path]] = defaultdict(list)
    for path in image_files(image_root):
        files_by_name[path.name].append(path)
        files_by_name[path.stem].append(path)
    annotations = {file: root for file in sorted(source.rglob('*.xml')) if (root := _parse(file)) is not None}
    names = {found.findtext('name', '') for root in annotations.values() for found in root.findall('object')}
    data = LabelledData('detection', check_classes(sorted(names), source), {})
    split_of_stem = _read_split_lists(source)
    for file, root in annotations.items():
        path = _image_of(file, root, files_by_name)
        image = LabelledImage(path, path.relative_to(image_root).as_posix(), image_size(path))
        image.objects = _read_objects(file, root, image.size, data.classes)
        data.splits.setdefault(split_of_stem.get(file.stem, UNSPLIT), []).append(image)
    _count_leftovers(data, files_by_name)
    return data


def _parse(file: Path) -> Element | None:
    """Return the root of an annotation; None for other XML."""
    try:
        root = safe_xml().parse(file).getroot()
    except ParseError as error:
        raise UserError(f'{file} is not valid XML ({error}): write the file again') from error
    return root if root.tag == 'annotation' else None


def _image_of(file: Path, root: Element, files_by_name: dict[str, list[Path]]) -> Path:
    """Return the image that an annotation names, or the one of its own name."""
    name = Path(root.findtext('filename', '').replace('\\', '/')).name
    candidates = files_by_name.get(name) or files_by_name.get(file.stem) or []
    # In sub-folders of one name for images and annotations, a name may occur several times.
    same_folder = [path for path in candidates if path.parent.name == file.parent.name]
    chosen = same_folder if len(same_folder) == 1 else candidates
    if len(chosen) != 1:
        raise UserError(f'{file} belongs to the image {name!r}, of which {len(chosen)} were found: wanted one')
    return chosen[0]


def _read_objects(file: Path, root: Element, size: tuple[int, int], classes: Sequence[str]) -> list[Object]:
    parser = supervision_parser('pascal_voc')
    height, width = size
    boxes_only = copy.deepcopy(root)
    for found in boxes_only.findall('object'):
        for polygon in found.findall('polygon'):
            found.remove(polygon)
    try:
        boxes, _ = parser.detections_from_xml_obj(boxes_only, list(classes), (width, height))
        objects = []
        for i, found in enumerate(root.findall('object')):
            # The same devkit: a vertex at 1 lies at 0.
            polygons = [(parser.parse_polygon_points(part) - 1).flatten().tolist() for part in found.findall('polygon')]
            box = tuple(float(value) for value in boxes.xyxy[i])
            objects.append(Object(int(boxes.class_id[i]), box, polygons or None))  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f'{file}: {error}') from error
    return objects


def _read_split_lists(source: Path) -> dict[str, str]:
    """Return the split of each annotation's stem, from ImageSets/Main."""
    splits = {}
    for split in SPLITS:
        for file in source.rglob(f'{SPLIT_LISTS}/{split}.txt'):
            for line in file.read_text(encoding='utf-8').splitlines():
                if line.strip():
                    splits[line.strip()] = split
    return splits


def _count_leftovers(data: LabelledData, files_by_name: dict[str, list[Path]]) -> None:
    """Count the images without an annotation and, where lists name splits, leave out what is in none of them."""
    paths = {path for paths in files_by_name.values() for path in paths}
    unlabelled = paths - {image.path for image in data.images}
    if unlabelled:
        data.losses['images without an XML file: left out'] += len(unlabelled)
    if len(data.splits) > 1 and UNSPLIT in data.splits:
        data.losses[f'annotations in no list of {SPLIT_LISTS}: left out'] += len(data.splits.pop(UNSPLIT))
