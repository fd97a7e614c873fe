"""Measure the data check on generated data of COCO's size: python tools/dev/data_check_scale.py FOLDER

Writes FOLDER/images and FOLDER/annotations.json (118,000 JPEGs of 640 x 480, 860,000 objects with polygons of 20
corners on average), checks them without a cache, and prints time and peak memory of this process and its children. The
documentation has the figures of these, as root on a machine with other work (--fifo):

    python tools/dev/data_check_scale.py all --fifo 20 --json docs/benchmarks/data_check.json
    python tools/dev/data_check_scale.py part --images 10000 --annotations 72881 --decode --fifo 20 --json ...
"""

import argparse
import io
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 480, 640
NUM_CATEGORIES = 80
CORNERS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0].split(':')[0])
    parser.add_argument('folder', type=Path, help='where the data are, or are written')
    parser.add_argument('--images', type=int, default=118_000, metavar='N')
    parser.add_argument('--annotations', type=int, default=860_000, metavar='N')
    parser.add_argument('--decode', action='store_true', help='decode every image, as tools/train.py --decode does')
    parser.add_argument('--fifo', type=int, metavar='N', help='real-time priority of the check (root, Linux)')
    parser.add_argument('--json', type=Path, help='add the figures to those in this file')
    args = parser.parse_args()
    if not (args.folder / 'annotations.json').exists():
        write(args.folder, args.images, args.annotations)

    from convnext_dense.data_check.check import check_data, follow_names
    from convnext_dense.toolkits import check_toolkit

    check_toolkit('mmdet')
    cfg = config_of(args.folder)
    follow_names(cfg, ['train'])
    before = peak_megabytes(resource.RUSAGE_SELF)
    if args.fifo:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(args.fifo))
    begin, begin_cpu = time.perf_counter(), cpu_seconds()
    findings = check_data(cfg, ['train'], decode=args.decode, use_cache=False)
    figures = dict(
        images=args.images,
        annotations=args.annotations,
        findings=len(findings),
        seconds=round(time.perf_counter() - begin, 1),
        seconds_of_cpu=round(cpu_seconds() - begin_cpu, 1),
        peak_megabytes=peak_megabytes(resource.RUSAGE_SELF),
        peak_megabytes_before=before,
        peak_megabytes_of_a_child=peak_megabytes(resource.RUSAGE_CHILDREN),
        fifo=args.fifo,
        cpus=os.cpu_count(),
    )
    print(json.dumps(figures, indent=1))
    if args.json:
        results = json.loads(args.json.read_text()) if args.json.exists() else {}
        results.setdefault('decoded' if args.decode else 'headers', []).append(figures)
        args.json.write_text(json.dumps(results, indent=1) + '\n')


def write(folder: Path, num_images: int, num_annotations: int) -> None:
    """Write images and annotations; the same numbers give the same files."""
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    encoded = []
    for _ in range(16):
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=90)
        encoded.append(buffer.getvalue())
    images = []
    for number in range(1, num_images + 1):
        name = f'{number:012d}.jpg'
        (folder / 'images' / name).write_bytes(encoded[number % len(encoded)])
        images.append(dict(license=1, file_name=name, height=HEIGHT, width=WIDTH, id=number))
    with (folder / 'annotations.json').open('w') as file:
        categories = [dict(supercategory='thing', id=number + 1, name=str(number)) for number in range(NUM_CATEGORIES)]
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for number in range(1, num_annotations + 1):
            file.write((', ' if number > 1 else '') + json.dumps(annotation(number, num_images, rng)))
        file.write(']}')


def annotation(number: int, num_images: int, rng: np.random.Generator) -> dict:
    """Return an object with a star-shaped polygon."""
    corners = int(rng.integers(CORNERS // 2, CORNERS * 3 // 2 + 1))
    angles = np.sort(rng.random(corners)) * 2 * np.pi
    radius = rng.uniform(5, 100)
    centre = rng.uniform((100, 100), (WIDTH - 100, HEIGHT - 100))
    points = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2)
    x, y = points.min(axis=0).tolist()
    width, height = (points.max(axis=0) - points.min(axis=0)).round(2).tolist()
    return dict(
        segmentation=[points.ravel().tolist()],
        area=round(width * height, 2),
        iscrowd=0,
        image_id=number % num_images + 1,
        bbox=[x, y, width, height],
        category_id=number % NUM_CATEGORIES + 1,
        id=number,
    )


def config_of(folder: Path):
    """Return a config that trains on the generated data."""
    from mmengine.config import Config

    dataset = dict(
        type='CocoDataset',
        ann_file=str(folder / 'annotations.json'),
        data_prefix=dict(img=str(folder / 'images')),
        metainfo=dict(classes=tuple(map(str, range(NUM_CATEGORIES)))),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
    )
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(),
            train_dataloader=dict(batch_size=2, num_workers=2, dataset=dataset),
        )
    )


def cpu_seconds() -> float:
    """Return the time on cores of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_megabytes(who: int) -> int:
    """Return the largest resident memory so far (Linux counts in KiB)."""
    return resource.getrusage(who).ru_maxrss // 1024


if __name__ == '__main__':
    main()
