"""Small data sets in our layouts, for tests of generated configs."""

from pathlib import Path

import numpy as np
from PIL import Image

from convnext_dense.dataset.formats import convert
from convnext_dense.dataset.records import LabelledData, LabelledImage, Object

SIDE = 64
CLASSES = ['disc', 'grüner Kasten', 'never']


def write_objects(folder: Path, masks: bool = True, num_train: int = 4) -> Path:
    """Write FOLDER/data/coco: bright squares, two in each image."""
    splits = {}
    for split, count in (('train', num_train), ('val', 2)):
        images = []
        for number in range(count):
            pixels = np.full((SIDE, SIDE, 3), 40, np.uint8)
            objects = []
            for label, x in ((0, 4), (1, 34)):
                y = 4 + 3 * (number % 8)
                pixels[y : y + 24, x : x + 24, label] = 220
                outline = [[x, y, x + 24, y, x + 24, y + 24, x, y + 24]] if masks else None
                objects.append(Object(label, (x, y, x + 24, y + 24), outline))
            images.append(_image(folder / split / f'{number}.png', pixels, objects=objects))
        splits[split] = images
    convert(LabelledData('detection', CLASSES, splits), folder / 'data')
    return folder / 'data'


def write_label_maps(folder: Path) -> Path:
    """Write FOLDER/data/ade: the upper half of each image is another class."""
    splits = {}
    for split, count in (('train', 4), ('val', 2)):
        images = []
        for number in range(count):
            labels = np.zeros((SIDE, SIDE), np.uint8)
            labels[: 20 + number] = 1
            labels[-2:] = 255
            target = folder / split / f'{number}_labels.png'
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(target)
            pixels = np.where(labels[..., None] == 1, np.uint8(200), np.uint8(40)).repeat(3, axis=2)
            images.append(_image(folder / split / f'{number}.jpg', pixels, label_map=target))
        splits[split] = images
    convert(LabelledData('segmentation', ['ground', 'sky'], splits), folder / 'data')
    return folder / 'data'


def _image(path: Path, pixels: np.ndarray, **labels) -> LabelledImage:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return LabelledImage(path, path.name, pixels.shape[:2], **labels)
