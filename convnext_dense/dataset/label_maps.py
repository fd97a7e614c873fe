"""Label maps: a PNG of class indices per image, in ADE20K's layout or in two folders beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_dense.dataset.coco import decode_rle, split_of
from convnext_dense.dataset.records import (
    UNSPLIT,
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

LABEL_FOLDERS = ('annotations', 'labels', 'masks', 'label', 'mask', 'SegmentationClass', 'gtFine')
IMAGE_FOLDERS = ('images', 'image', 'imgs', 'JPEGImages')
CLASSES_FILE = 'classes.txt'  # a name per line, in the order of the indices
IGNORED = 255
ADE_FOLDER = Path('ade/ADEChallengeData2016')
# The names that ADE20K gives to the splits.
ADE_SPLITS = {'train': 'training', 'val': 'validation', 'test': 'test'}


def read_label_maps(source: Path, classes: Sequence[str] = ()) -> LabelledData:
    """Read images and label maps of one name (``images/a.jpg``, ``labels/a.png``); sub-folders may name splits.

    Args:
        source: A folder that holds a folder of images and one of label maps, such as ``images`` and ``masks``.
        classes: Names of the indices from 0; by default the lines of ``classes.txt``.

    Raises:
        UserError: A folder is missing, an image has no label map or one of another size, or a value has no class.
    """
    image_root, label_root = find_folders(source)
    names = check_classes(classes or _read_classes(source), source / CLASSES_FILE)
    if len(names) > IGNORED:
        raise UserError(f'{len(names)} classes are too many: {IGNORED} is ignored, and mmseg reads 8 bits per pixel')
    label_maps = {path.relative_to(label_root).with_suffix(''): path for path in sorted(label_root.rglob('*.png'))}
    data = LabelledData('segmentation', names, {})
    for path in image_files(image_root):
        relative = path.relative_to(image_root)
        label_map = label_maps.get(relative.with_suffix(''))
        if label_map is None:
            data.losses['images without a label map: left out'] += 1
            continue
        image = LabelledImage(path, relative.as_posix(), image_size(path), label_map=label_map)
        _check_label_map(label_map, image.size, len(names))
        split = split_of(Path(relative.parts[0])) if len(relative.parts) > 1 else UNSPLIT
        if split != UNSPLIT:
            image.name = relative.relative_to(relative.parts[0]).as_posix()
        data.splits.setdefault(split, []).append(image)
    if not data.splits:
        raise UserError(f'no image in {image_root} has a label map of its name in {label_root}: check the names')
    return data


def find_folders(source: Path) -> tuple[Path, Path]:
    """Return the folders of images and of label maps in ``source``, or in an ADE20K layout below it."""
    for folder in (source, source / ADE_FOLDER, source / ADE_FOLDER.name):
        images = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
        labels = [folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()]
        labels = [path for path in labels if next(path.rglob('*.png'), None)]
        if images and labels:
            return images[0], labels[0]
    raise UserError(
        f'{source} holds no folder of images ({", ".join(IMAGE_FOLDERS)}) next to one of label maps '
        f'({", ".join(LABEL_FOLDERS)}): rename yours'
    )


def _read_classes(source: Path) -> list[str]:
    for folder in (source, source / ADE_FOLDER, source / ADE_FOLDER.name):
        file = folder / CLASSES_FILE
        if file.is_file():
            return [line.strip() for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
    raise UserError(f'{source} holds no {CLASSES_FILE}: write the class names into it, one per line from index 0 on')


def _check_label_map(path: Path, size: tuple[int, int], num_classes: int) -> None:
    labels = read_label_map(path)
    if labels.shape != size:
        raise UserError(
            f'{path} is {labels.shape[0]}x{labels.shape[1]}, its image {size[0]}x{size[1]} (height x width): '
            'make them equal'
        )
    values = np.unique(labels)
    unknown = values[(values >= num_classes) & (values != IGNORED)]
    if len(unknown):
        raise UserError(
            f'{path} holds the values {unknown[:5].tolist()}, but the {num_classes} classes have the '
            f'indices 0 to {num_classes - 1} ({IGNORED} is ignored): map the values, or name more classes'
        )


def read_label_map(path: Path) -> np.ndarray:
    """Return a label map (height, width) of class indices; the colours of a palette do not matter.

    Raises:
        UserError: The file is no image, or one of colours.
    """
    try:
        with Image.open(path) as opened:
            mode, labels = opened.mode, np.array(opened)
    except OSError as error:
        raise UserError(f'{path} cannot be read as an image ({error}): write it again') from error
    if labels.ndim != 2:
        raise UserError(f'{path} is a colour image ({mode}): write one class index per pixel')
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def write_ade(data: LabelledData, folder: Path, copy: bool) -> None:
    """Write a data set in ADE20K's layout, with ``classes.txt``.

    Objects with outlines become a label map: background is 0, and class i is i + 1. What a label map cannot hold is
    counted in ``data.losses``.

    Args:
        data: With named splits.
        folder: To write, such as OUT/ade/ADEChallengeData2016.
        copy: Copy the images and label maps instead of linking to them.
    """
    painted = data.kind == 'detection'
    if painted and not any(found.segmentation for image in data.images for found in image.objects):
        raise UserError('label maps need outlines, but these objects have only boxes: write --to coco')
    classes = ['background', *data.classes] if painted else data.classes
    for split, images in data.splits.items():
        check_stems(images, 'label')
        for image in images:
            place_file(image.path, folder / 'images' / ADE_SPLITS[split] / image.name, copy)
            target = (folder / 'annotations' / ADE_SPLITS[split] / image.name).with_suffix('.png')
            if painted:
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_paint(image, data)).save(target)
            else:
                place_file(image.label_map, target, copy)  # type: ignore[arg-type]  # of this kind, each has one
    (folder / CLASSES_FILE).write_text(''.join(f'{name}\n' for name in classes), encoding='utf-8')


def _paint(image: LabelledImage, data: LabelledData) -> np.ndarray:
    """Return the label map of an image with objects, the larger ones below the smaller ones."""
    masks = []
    for found in image.objects:
        if found.segmentation:
            masks.append((mask_of(found, image.size), found))
        else:
            data.losses['objects without an outline, which a label map does not hold: left out'] += 1
    masks.sort(key=lambda pair: -int(pair[0].sum()))
    labels = np.zeros(image.size, np.uint8)
    for mask, found in masks:
        covered = labels[mask]
        if ((covered != 0) & (covered != found.label + 1)).any():
            data.losses['objects that overlap those of another class: the smaller one is on top'] += 1
        labels[mask] = IGNORED if found.is_crowd else found.label + 1
    return labels


def mask_of(found: Object, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (height, width), bool, of an object with an outline."""
    from pycocotools import mask as coco_mask  # comes with mmdet

    if isinstance(found.segmentation, dict):
        return decode_rle(found.segmentation).astype(bool)
    parts = coco_mask.frPyObjects(found.segmentation, *size)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)
