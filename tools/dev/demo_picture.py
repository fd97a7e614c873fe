"""Make the README's picture of a demo's predictions: python tools/dev/demo_picture.py DEMO_FOLDER OUT.jpg"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from convnext_dense.run.demo import TASKS

SIDE = 160  # pixels of an image in the picture
PAIRS = 3  # in a row: ground truth beside prediction
GAP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split(':')[0])
    parser.add_argument('folder', type=Path, help='of a demo that has ended')
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    demo_picture(args.folder).save(args.out, quality=85)


def demo_picture(folder: Path) -> Image.Image:
    """Draw a row for each model of the demo: its first test images, ground truth beside prediction.

    Args:
        folder: Folder of a demo that has ended.

    Returns:
        An RGB image.
    """
    width = PAIRS * (2 * SIDE + GAP) - GAP
    picture = Image.new('RGB', (width, len(TASKS) * (SIDE + GAP) - GAP), 'white')
    for row, task in enumerate(TASKS):
        drawn = sorted(path for path in (folder / task.folder / 'drawn').rglob('*') if path.suffix in ('.jpg', '.png'))
        for column, path in enumerate(drawn[:PAIRS]):
            pair = Image.open(path).convert('RGB').resize((2 * SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.paste(pair, (column * (2 * SIDE + GAP), row * (SIDE + GAP)))
    return picture


if __name__ == '__main__':
    main()
