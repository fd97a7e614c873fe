"""Detect or segment in images: python tools/predict.py CONFIG CHECKPOINT IMAGE_OR_FOLDER... --out FOLDER

Detectors write FOLDER/predictions.json, a complete COCO file with scores (category ids count from 1 in the order of the
model's classes, masks are RLE); segmentors write FOLDER/labels/NAME.png with class indices from 0. Both draw into
FOLDER/pictures/.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import mmcv
import numpy as np
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS

from convnext_dense.errors import UserError
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.options import common_arguments, errors_as_sentences, read_config
from convnext_dense.sample_data import progress
from convnext_dense.toolkits import check_toolkit
from convnext_dense.weights.safe_reading import only_safe_loading
from convnext_dense.weights.sources import SCHEME, check_source

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(sources: list[Path]) -> dict[str, Path]:
    """{name in the output: file}; folders are searched through and through, names keep their sub-folders.

    Raises:
        UserError: A source does not exist, or two files would be written under one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f'there is no image or folder {source}: check the path')
        files = (
            [source]
            if source.is_file()
            else sorted(path for path in source.rglob('*') if path.suffix.lower() in SUFFIXES)
        )
        for file in files:
            name = file.name if source.is_file() else str(file.relative_to(source))
            clash = next(
                (path for key, path in found.items() if Path(key).with_suffix('') == Path(name).with_suffix('')), None
            )
            if clash:
                raise UserError(f'{clash} and {file} would be written under one name: give them in two calls')
            found[name] = file
    if not found:
        raise UserError(f'there is no image in {", ".join(map(str, sources))} (looked for {", ".join(SUFFIXES)})')
    return found


def read_images(files: dict[str, Path], unreadable: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, BGR image) of every file that can be read; the others go into ``unreadable``."""
    for name, file in progress(list(files.items())):
        image = mmcv.imread(str(file), channel_order='bgr') if file.stat().st_size else None
        if image is None:
            unreadable.append(file)
        else:
            yield name, image


def coco_annotations(sample, image_id: int, first_id: int, threshold: float) -> list[dict]:
    """COCO annotations with scores of one DetDataSample."""
    from pycocotools import mask as coco_mask

    instances = sample.pred_instances.cpu().numpy()
    annotations = []
    for i in np.flatnonzero(instances.scores >= threshold):
        x0, y0, x1, y1 = (round(float(value), 2) for value in instances.bboxes[i])
        annotation = dict(
            id=first_id + len(annotations),
            image_id=image_id,
            category_id=int(instances.labels[i]) + 1,
            bbox=[x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            area=round((x1 - x0) * (y1 - y0), 2),
            score=round(float(instances.scores[i]), 4),
            iscrowd=0,
        )
        if 'masks' in instances:
            mask = np.asfortranarray(instances.masks[i].astype(np.uint8))
            rle = coco_mask.encode(mask)
            annotation.update(segmentation=dict(size=rle['size'], counts=rle['counts'].decode()), area=int(mask.sum()))
        annotations.append(annotation)
    return annotations


@only_safe_loading()
def predict(args: argparse.Namespace) -> list[Path]:
    """Write the predictions; returns the files that could not be read."""
    files = find_images(args.images)
    check_source(args.checkpoint, 'checkpoint')
    cfg = read_config(args)
    check_toolkit(cfg.default_scope)
    fit_to_machine(cfg, 'none')
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f'{args.out} is not empty: give a new folder, nothing was written')
    if cfg.default_scope == 'mmdet':
        from mmdet.apis import inference_detector as infer
        from mmdet.apis import init_detector as init
    elif cfg.default_scope == 'mmseg':
        from mmseg.apis import inference_model as infer
        from mmseg.apis import init_model as init
    else:
        raise UserError(f'{args.config} is of the toolkit {cfg.default_scope!r}: predictions are for mmdet and mmseg')
    model = init(cfg, SCHEME + args.checkpoint, device=get_device())
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, name='predict', vis_backends=None))
    visualizer.dataset_meta = model.dataset_meta
    (args.out / 'pictures').mkdir(parents=True, exist_ok=True)
    threshold = dict(pred_score_thr=args.score_thr) if cfg.default_scope == 'mmdet' else {}
    images, annotations, unreadable = [], [], []
    for name, image in read_images(files, unreadable):
        sample = infer(model, image)
        picture = args.out / 'pictures' / Path(name).with_suffix('.png')
        picture.parent.mkdir(parents=True, exist_ok=True)
        visualizer.add_datasample(name, mmcv.bgr2rgb(image), sample, draw_gt=False, out_file=str(picture), **threshold)
        if cfg.default_scope == 'mmseg':
            labels = args.out / 'labels' / Path(name).with_suffix('.png')
            labels.parent.mkdir(parents=True, exist_ok=True)
            mmcv.imwrite(sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8), str(labels))
            continue
        images.append(dict(id=len(images) + 1, file_name=name, height=image.shape[0], width=image.shape[1]))
        annotations += coco_annotations(sample, len(images), len(annotations) + 1, args.score_thr)
    if cfg.default_scope == 'mmdet':
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(model.dataset_meta['classes'])]
        (args.out / 'predictions.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
    print(f'\npredictions for {len(files) - len(unreadable)} of {len(files)} images are in {args.out}')
    return unreadable


def main() -> None:
    parser = common_arguments(__doc__.split(':')[0])
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE_OR_FOLDER')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='a new folder for the predictions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='detections below are left out (default 0.3)')
    with errors_as_sentences():
        unreadable = predict(parser.parse_args())
        if unreadable:
            raise UserError(
                f'{len(unreadable)} files could not be read as images and were skipped: '
                f'{", ".join(map(str, unreadable))}'
            )


if __name__ == '__main__':
    main()
