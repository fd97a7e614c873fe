"""Cut the trees of deepforest's wheel into tiles with a table of boxes: python tools/dev/deepforest_tiles.py WHEEL OUT

The pictures are crops of aerial photographs of the National Ecological Observatory Network with hand-labelled crowns of
trees in Pascal VOC, part of the package deepforest (MIT). The wheel is unpacked, not installed.
"""

import argparse
import csv
import tempfile
import zipfile
from pathlib import Path

TILE = 400  # pixels, the window that deepforest itself trains on
MIN_SHARE = 0.5  # of a box that lies in a tile, for the tile to hold it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].split(':')[0])
    parser.add_argument('wheel', type=Path)
    parser.add_argument('out', type=Path, help='a new folder')
    args = parser.parse_args()

    from PIL import Image

    from convnext_dense.dataset.records import check_new_folder
    from convnext_dense.dataset.voc import read_voc

    check_new_folder(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple] = []
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(args.wheel) as archive:
            for name in archive.namelist():
                if name.startswith('deepforest/data/') and name.endswith(('.xml', '.png', '.tif')):
                    archive.extract(name, folder)
        data = read_voc(Path(folder) / 'deepforest' / 'data')
        for image in data.images:
            with Image.open(image.path) as opened:
                picture = opened.convert('RGB')
            rows += cut(picture, image.path.stem, [found.box for found in image.objects], args.out)
    with (args.out / 'boxes.csv').open('w', newline='') as stream:
        csv.writer(stream).writerows([('image', 'xmin', 'ymin', 'xmax', 'ymax', 'label'), *rows])
    print(f'{len({row[0] for row in rows})} tiles with {sum(row[1] != "" for row in rows)} boxes in {args.out}')


def cut(picture, name: str, boxes: list[tuple[float, ...]], out: Path) -> list[tuple]:
    """Write the tiles of a picture, and return their rows of the table."""
    rows: list[tuple] = []
    for top in range(0, max(picture.height - TILE // 2, 1), TILE):
        for left in range(0, max(picture.width - TILE // 2, 1), TILE):
            width, height = min(TILE, picture.width - left), min(TILE, picture.height - top)
            tile = f'{name}_{top}_{left}.png'
            inside = []
            for x0, y0, x1, y1 in boxes:
                cropped = (max(x0 - left, 0), max(y0 - top, 0), min(x1 - left, width), min(y1 - top, height))
                sides = (cropped[2] - cropped[0], cropped[3] - cropped[1])
                if min(sides) > 0 and sides[0] * sides[1] >= MIN_SHARE * (x1 - x0) * (y1 - y0):
                    inside.append(cropped)
            picture.crop((left, top, left + width, top + height)).save(out / tile)
            rows += [(tile, *box, 'Tree') for box in inside] or [(tile, '', '', '', '', '')]
    return rows


if __name__ == '__main__':
    main()
