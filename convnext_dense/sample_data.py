"""A small real data set: handwritten digits on photographs, in COCO and ADE20K layout.

The digits are the 1,797 scans of scikit-learn's ``load_digits`` (UCI Optical Recognition of Handwritten Digits), the
backgrounds are random crops of its two sample photographs. Train and val never share a digit. Written as

    OUT/coco/                    train2017/ val2017/ annotations/instances_{train,val}2017.json
    OUT/ade/ADEChallengeData2016 images/{training,validation} annotations/{training,validation}

so that with ``--names coco`` the official recipes read OUT as it is (CONVNEXT_DENSE_DATA=OUT). In the label maps 0 is
background and digit d is d + 1, under either naming; ADE20K's data set class ignores 0.

    python -m convnext_dense.sample_data OUT [--names digits|coco] [--seed N] [--train N] [--val N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.utils import track_iter_progress

from convnext_dense.errors import UserError

# COCO's classes, in the order of its ids: 1 to 90 without the ten that were given up.
COCO_CLASSES = (
    'person',
    'bicycle',
    'car',
    'motorcycle',
    'airplane',
    'bus',
    'train',
    'truck',
    'boat',
    'traffic light',
    'fire hydrant',
    'stop sign',
    'parking meter',
    'bench',
    'bird',
    'cat',
    'dog',
    'horse',
    'sheep',
    'cow',
    'elephant',
    'bear',
    'zebra',
    'giraffe',
    'backpack',
    'umbrella',
    'handbag',
    'tie',
    'suitcase',
    'frisbee',
    'skis',
    'snowboard',
    'sports ball',
    'kite',
    'baseball bat',
    'baseball glove',
    'skateboard',
    'surfboard',
    'tennis racket',
    'bottle',
    'wine glass',
    'cup',
    'fork',
    'knife',
    'spoon',
    'bowl',
    'banana',
    'apple',
    'sandwich',
    'orange',
    'broccoli',
    'carrot',
    'hot dog',
    'pizza',
    'donut',
    'cake',
    'chair',
    'couch',
    'potted plant',
    'bed',
    'dining table',
    'toilet',
    'tv',
    'laptop',
    'mouse',
    'remote',
    'keyboard',
    'cell phone',
    'microwave',
    'oven',
    'toaster',
    'sink',
    'refrigerator',
    'book',
    'clock',
    'vase',
    'scissors',
    'teddy bear',
    'hair drier',
    'toothbrush',
)
COCO_IDS = [id_ for id_ in range(1, 91) if id_ not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
# Ids and names of all categories of a COCO file; digit d is entry d.
NAMES = {
    'digits': [(d + 1, str(d)) for d in range(10)],
    'coco': list(zip(COCO_IDS, COCO_CLASSES)),
}
VAL_DIGITS = 400  # of 1,797; the others are for training
RECORD = 'sample_data.json'
CONTOUR_SCALE = 4  # contours are traced on an enlarged mask, to lie within an eighth of a pixel of its edge


def progress(items: Sequence) -> Iterable:
    """``items`` with a progress bar on a terminal; logs are spared its thousand states."""
    return track_iter_progress(items) if sys.stdout.isatty() else items


@dataclass(frozen=True)
class Scene:
    """How an image is composed; lengths in pixels."""

    size: int
    max_digits: int
    min_digit: int
    max_digit: int


# Digits fill about a sixth of an image for segmentation, where background would otherwise win every pixel.
SCENES = {
    'coco': Scene(size=192, max_digits=3, min_digit=48, max_digit=96),
    'ade': Scene(size=128, max_digits=2, min_digit=64, max_digit=120),
}


@dataclass
class Sources:
    """Digits of one split and the photographs."""

    digits: np.ndarray  # (N, 8, 8), 0 to 1
    labels: np.ndarray  # (N,), 0 to 9
    photos: list[np.ndarray]  # (H, W, 3), RGB


def load_sources(seed: int) -> dict[str, Sources]:
    """The digits, shuffled and divided between 'train' and 'val', with the two photographs."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError:
        raise UserError(
            "the sample data are made from scikit-learn's digits, which is not installed: "
            "pip install 'convnext-dense[demo]'"
        ) from None
    digits, photos = load_digits(), load_sample_images().images
    order = np.random.default_rng(seed).permutation(len(digits.target))
    parts = {'val': order[:VAL_DIGITS], 'train': order[VAL_DIGITS:]}
    return {split: Sources(digits.images[part] / 16.0, digits.target[part], photos) for split, part in parts.items()}


def compose(
    sources: Sources, scene: Scene, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image (size, size, 3), RGB, and its objects as (digit, boolean mask), apart from each other."""
    photo = sources.photos[rng.integers(len(sources.photos))]
    crop = int(rng.integers(scene.size, min(photo.shape[:2]) + 1))
    top, left = (int(rng.integers(side - crop + 1)) for side in photo.shape[:2])
    image = cv2.resize(photo[top : top + crop, left : left + crop], (scene.size,) * 2, interpolation=cv2.INTER_AREA)
    image = image.astype(np.float32)
    taken = np.zeros((scene.size,) * 2, bool)
    objects = []
    for _ in range(rng.integers(1, scene.max_digits + 1)):
        index = rng.integers(len(sources.digits))
        side = int(rng.integers(scene.min_digit, scene.max_digit + 1))
        ink = cv2.resize(sources.digits[index], (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        for _ in range(20):  # a few tries for a free place; else the image has one digit fewer
            y, x = rng.integers(0, scene.size - side + 1, 2)
            place = np.s_[y : y + side, x : x + side]
            if not taken[place].any():
                break
        else:
            continue
        alpha = np.clip(ink * 2 - 0.3, 0, 1)[..., None]
        # Light on dark and dark on light, so that every digit can be seen.
        colour = rng.uniform(160, 255, 3) if image[place].mean() < 128 else rng.uniform(0, 80, 3)
        image[place] = image[place] * (1 - alpha) + colour * alpha
        mask = np.zeros_like(taken)
        # The object is the outline with what it encloses, so that a polygon without holes describes it.
        contours, _ = cv2.findContours((ink > 0.4).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = np.zeros((side, side), np.uint8)
        cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
        mask[place] = filled.astype(bool)
        taken |= mask
        objects.append((int(sources.labels[index]), mask))
    return image.astype(np.uint8), objects


def polygons_of(mask: np.ndarray) -> list[list[float]]:
    """COCO polygons of a boolean mask without holes: x0, y0, x1, y1, ... in pixels, corner of the image at 0."""
    enlarged = np.kron(mask.astype(np.uint8), np.ones((CONTOUR_SCALE,) * 2, np.uint8))
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [
        ((contour[:, 0] + 0.5) / CONTOUR_SCALE).round(2).flatten().tolist() for contour in contours if len(contour) > 2
    ]


def annotation_of(mask: np.ndarray) -> dict:
    """COCO's geometry fields of one object."""
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    return dict(
        bbox=[x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
        area=int(mask.sum()),
        segmentation=polygons_of(mask),
        iscrowd=0,
    )


def write_coco(folder: Path, split: str, sources: Sources, count: int, names: str, rng: np.random.Generator) -> None:
    images, annotations = [], []
    image_dir = folder / f'{split}2017'
    image_dir.mkdir(parents=True)
    print(f'COCO layout, {split}: {count} images')
    for i in progress(range(1, count + 1)):
        image, objects = compose(sources, SCENES['coco'], rng)
        name = f'{i:012d}.jpg'
        cv2.imwrite(str(image_dir / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append(dict(id=i, file_name=name, height=image.shape[0], width=image.shape[1]))
        for digit, mask in objects:
            annotations.append(
                dict(id=len(annotations) + 1, image_id=i, category_id=NAMES[names][digit][0], **annotation_of(mask))
            )
    target = folder / 'annotations' / f'instances_{split}2017.json'
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        json.dumps(
            dict(
                info=dict(description='scikit-learn digits on photographs, made by convnext_dense.sample_data'),
                images=images,
                annotations=annotations,
                categories=[dict(id=id_, name=name, supercategory='digit') for id_, name in NAMES[names]],
            )
        )
    )


def write_ade(folder: Path, split: str, sources: Sources, count: int, rng: np.random.Generator) -> None:
    part = dict(train='training', val='validation')[split]
    dirs = {kind: folder / kind / part for kind in ('images', 'annotations')}
    for path in dirs.values():
        path.mkdir(parents=True)
    print(f'ADE20K layout, {split}: {count} images')
    for i in progress(range(1, count + 1)):
        image, objects = compose(sources, SCENES['ade'], rng)
        labels = np.zeros(image.shape[:2], np.uint8)
        for digit, mask in objects:
            labels[mask] = digit + 1
        name = f'ADE_{split}_{i:08d}'
        cv2.imwrite(str(dirs['images'] / f'{name}.jpg'), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(dirs['annotations'] / f'{name}.png'), labels)


def write_sample_data(
    out: str | Path, names: str = 'digits', seed: int = 0, num_train: int = 2000, num_val: int = 250
) -> Path:
    """Write both layouts into the folder ``out``; the same arguments give the same pixels and annotations.

    A folder that holds exactly these data already is left as it is.

    Raises:
        UserError: ``out`` exists and holds something else, or an argument cannot be used.
    """
    out = Path(out)
    if names not in NAMES:
        raise UserError(f'sample data have no names {names!r}: use one of {", ".join(NAMES)}')
    if num_train < 1 or num_val < 1:
        raise UserError(f'sample data need at least one image in each split, found {num_train} and {num_val}')
    record = dict(
        names=names,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        scenes={kind: asdict(scene) for kind, scene in SCENES.items()},
    )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        present = json.loads((out / RECORD).read_text()) if (out / RECORD).is_file() else None
        if present == record:
            print(f'{out} holds these sample data already')
            return out
        raise UserError(
            f'{out} exists and holds '
            + (f'sample data of other settings, {present}' if present else 'something else than sample data')
            + ': nothing was written, give another folder or remove it'
        )
    sources = load_sources(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not there at all: an interrupted run leaves no half data set under the final name.
    temp = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    temp.chmod(0o755)
    try:
        for number, (split, count) in enumerate((('train', num_train), ('val', num_val))):
            write_coco(temp / 'coco', split, sources[split], count, names, np.random.default_rng([seed, number, 0]))
            write_ade(
                temp / 'ade' / 'ADEChallengeData2016',
                split,
                sources[split],
                count,
                np.random.default_rng([seed, number, 1]),
            )
        (temp / RECORD).write_text(json.dumps(record))
        if out.exists():
            out.rmdir()
        temp.rename(out)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m convnext_dense.sample_data', description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to write; must not exist, or be empty')
    parser.add_argument(
        '--names',
        default='digits',
        choices=NAMES,
        help="class names: the digits, or the first ten of COCO's, for the official recipes",
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train', type=int, default=2000, metavar='N', help='training images in each layout')
    parser.add_argument('--val', type=int, default=250, metavar='N', help='validation images in each layout')
    args = parser.parse_args()
    try:
        write_sample_data(args.out, args.names, args.seed, args.train, args.val)
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
