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
COCO_NAMES = (
    'person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, '
    'parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, '
    'handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, '
    'surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, '
    'broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, '
    'laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, '
    'scissors, teddy bear, hair drier, toothbrush'
)
COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
# Ids and names of all categories of a COCO file; digit d is entry d.
NAMES: dict[str, list[tuple[int, str]]] = {
    'digits': [(digit + 1, str(digit)) for digit in range(10)],
    'coco': list(zip(COCO_IDS, COCO_NAMES.split(', '), strict=True)),
}
VAL_DIGITS = 400  # of 1,797; the others are for training
RECORD = 'sample_data.json'
PLACE_TRIES = 20
CONTOUR_SCALE = 4  # contours are traced on an enlarged mask, to lie within an eighth of a pixel of its edge


def progress(items: Sequence) -> Iterable:
    """Iterate with a progress bar on a terminal, and without one where output goes into a log."""
    return track_iter_progress(items) if sys.stdout.isatty() else items


@dataclass(frozen=True)
class Scene:
    """How an image is composed.

    Attributes:
        size: Side of the image in pixels.
        max_digits: An image has 1 to this many digits, fewer where there is no free place.
        min_digit, max_digit: Range of the side of a digit in pixels.
    """

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
    """What images of one split are made of.

    Attributes:
        digits: Scans (N, 8, 8), 0 to 1.
        labels: Which digit each is (N,), 0 to 9.
        photos: Photographs (H, W, 3) in RGB order, the same for both splits.
    """

    digits: np.ndarray
    labels: np.ndarray
    photos: list[np.ndarray]


def load_sources(seed: int) -> dict[str, Sources]:
    """Return the digits, shuffled and divided between 'train' and 'val', with the two photographs.

    Raises:
        UserError: scikit-learn is not installed.
    """
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
    """Compose one image.

    Returns:
        The image (size, size, 3) uint8 in RGB order, and its objects, apart from each other: (digit, mask), where a
        mask is boolean (size, size).
    """
    image = _background(sources.photos, scene.size, rng)
    taken = np.zeros((scene.size, scene.size), bool)
    objects = []
    for _ in range(rng.integers(1, scene.max_digits + 1)):
        index = rng.integers(len(sources.digits))
        side = int(rng.integers(scene.min_digit, scene.max_digit + 1))
        ink = cv2.resize(sources.digits[index], (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        place = _free_place(taken, side, rng)
        if place is None:
            continue
        _draw(ink, image[place], rng)
        mask = np.zeros_like(taken)
        mask[place] = _outline(ink)
        taken |= mask
        objects.append((int(sources.labels[index]), mask))
    return image.astype(np.uint8), objects


def _background(photos: Sequence[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random square crop of a photograph, (size, size, 3) float32."""
    photo = photos[int(rng.integers(len(photos)))]
    height, width = photo.shape[:2]
    crop = int(rng.integers(size, min(height, width) + 1))
    top = int(rng.integers(height - crop + 1))
    left = int(rng.integers(width - crop + 1))
    cropped = photo[top : top + crop, left : left + crop]
    return cv2.resize(cropped, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)


def _free_place(taken: np.ndarray, side: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Return a random square that no object touches; None if a few tries find none."""
    for _ in range(PLACE_TRIES):
        y, x = rng.integers(0, len(taken) - side + 1, 2)
        place = np.s_[y : y + side, x : x + side]
        if not taken[place].any():
            return place
    return None


def _draw(ink: np.ndarray, patch: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a digit (side, side), 0 to 1, into a patch (side, side, 3) of an image, in place."""
    # Light on dark and dark on light, so that every digit can be seen.
    colour = rng.uniform(160, 255, 3) if patch.mean() < 128 else rng.uniform(0, 80, 3)
    alpha = np.clip(ink * 2 - 0.3, 0, 1)[..., None]
    patch[:] = patch * (1 - alpha) + colour * alpha


def _outline(ink: np.ndarray) -> np.ndarray:
    """Return the boolean mask of a digit with what it encloses, so that a polygon without holes describes it."""
    dark = (ink > 0.4).astype(np.uint8)
    contours, _ = cv2.findContours(dark, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(ink.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled.astype(bool)


def polygons_of(mask: np.ndarray) -> list[list[float]]:
    """Return COCO polygons of a boolean mask (H, W) without holes: x0, y0, x1, y1, ... in pixels, from its corner."""
    enlarged = mask.astype(np.uint8).repeat(CONTOUR_SCALE, axis=0).repeat(CONTOUR_SCALE, axis=1)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:  # (N, 1, 2)
        if len(contour) > 2:
            points = (contour[:, 0] + 0.5) / CONTOUR_SCALE
            polygons.append(points.round(2).flatten().tolist())
    return polygons


def annotation_of(mask: np.ndarray) -> dict:
    """Return COCO's geometry fields of one object with the boolean mask (H, W)."""
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    return dict(
        bbox=[x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
        area=int(mask.sum()),
        segmentation=polygons_of(mask),
        iscrowd=0,
    )


def write_coco(folder: Path, split: str, sources: Sources, count: int, names: str, rng: np.random.Generator) -> None:
    """Write one split in COCO's layout.

    Args:
        folder: The folder ``coco``.
        split: 'train' or 'val'.
        sources: What images are made of.
        count: Number of images.
        names: A key of :data:`NAMES`.
        rng: Decides everything random.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    image_dir = folder / f'{split}2017'
    image_dir.mkdir(parents=True)
    print(f'COCO layout, {split}: {count} images')
    for image_id in progress(range(1, count + 1)):
        image, objects = compose(sources, SCENES['coco'], rng)
        name = f'{image_id:012d}.jpg'
        _write_jpeg(image_dir / name, image)
        images.append(dict(id=image_id, file_name=name, height=image.shape[0], width=image.shape[1]))
        for digit, mask in objects:
            category_id, _ = NAMES[names][digit]
            ids = dict(id=len(annotations) + 1, image_id=image_id, category_id=category_id)
            annotations.append(ids | annotation_of(mask))
    content = dict(
        info=dict(description='scikit-learn digits on photographs, made by convnext_dense.sample_data'),
        images=images,
        annotations=annotations,
        categories=[dict(id=id_, name=name, supercategory='digit') for id_, name in NAMES[names]],
    )
    annotation_file = folder / 'annotations' / f'instances_{split}2017.json'
    annotation_file.parent.mkdir(exist_ok=True)
    annotation_file.write_text(json.dumps(content))


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an image in RGB order."""
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])


def write_ade(folder: Path, split: str, sources: Sources, count: int, rng: np.random.Generator) -> None:
    """Write one split in ADE20K's layout.

    Args:
        folder: The folder ``ADEChallengeData2016``.
        split, sources, count, rng: As for :func:`write_coco`.
    """
    part = dict(train='training', val='validation')[split]
    image_dir, label_dir = folder / 'images' / part, folder / 'annotations' / part
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    print(f'ADE20K layout, {split}: {count} images')
    for number in progress(range(1, count + 1)):
        image, objects = compose(sources, SCENES['ade'], rng)
        labels = np.zeros(image.shape[:2], np.uint8)
        for digit, mask in objects:
            labels[mask] = digit + 1
        name = f'ADE_{split}_{number:08d}'
        _write_jpeg(image_dir / f'{name}.jpg', image)
        cv2.imwrite(str(label_dir / f'{name}.png'), labels)


def write_sample_data(
    out: str | Path, names: str = 'digits', seed: int = 0, num_train: int = 2000, num_val: int = 250
) -> Path:
    """Write both layouts; the same arguments give the same pixels and annotations.

    Args:
        out: Folder to write. If it holds exactly these data already, it is left as it is.
        names: Class names: 'digits', or 'coco' for the first ten of COCO.
        seed: Decides everything random.
        num_train, num_val: Images of each split in each layout.

    Returns:
        The folder.

    Raises:
        UserError: ``out`` exists and holds something else, or an argument cannot be used.
    """
    out = Path(out)
    if names not in NAMES:
        raise UserError(f'sample data have no names {names!r}: use one of {", ".join(NAMES)}')
    if num_train < 1 or num_val < 1:
        raise UserError(f'sample data need at least one image in each split, found {num_train} and {num_val}')
    scenes = {kind: asdict(scene) for kind, scene in SCENES.items()}
    record = dict(names=names, seed=seed, num_train=num_train, num_val=num_val, scenes=scenes)
    if _holds(out, record):
        print(f'{out} holds these sample data already')
        return out
    sources = load_sources(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not there at all: an interrupted run leaves no half data set under the final name.
    unfinished = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    unfinished.chmod(0o755)
    try:
        for number, (split, count) in enumerate((('train', num_train), ('val', num_val))):
            coco_rng, ade_rng = (np.random.default_rng([seed, number, layout]) for layout in (0, 1))
            write_coco(unfinished / 'coco', split, sources[split], count, names, coco_rng)
            write_ade(unfinished / 'ade' / 'ADEChallengeData2016', split, sources[split], count, ade_rng)
        (unfinished / RECORD).write_text(json.dumps(record))
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _holds(out: Path, record: dict) -> bool:
    """Return whether ``out`` holds the data of ``record`` already; False if it is empty or not there.

    Raises:
        UserError: It holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = 'something else than sample data'
    if (out / RECORD).is_file():
        present = json.loads((out / RECORD).read_text())
        if present == record:
            return True
        found = f'sample data of other settings, {present}'
    raise UserError(f'{out} exists and holds {found}: nothing was written, give another folder or remove it')


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
