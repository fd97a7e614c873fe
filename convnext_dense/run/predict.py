"""Write the predictions of a detector or segmentor for images: what ``tools/predict.py`` does.

Detectors write FOLDER/predictions.json, a complete COCO file with scores (category ids count from 1 in the order of the
model's classes, masks are RLE). Segmentors write FOLDER/labels/NAME.png with class indices from 0. Both draw into
FOLDER/pictures/.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS
from mmengine.visualization import Visualizer
from torch import nn

from convnext_dense.errors import UserError
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.options import read_config
from convnext_dense.sample_data import progress
from convnext_dense.toolkits import check_toolkit
from convnext_dense.weights.safe_reading import only_safe_loading
from convnext_dense.weights.sources import SCHEME, check_source

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# By toolkit: the functions of its module ``apis`` that build a model and that run it on one image.
INFERENCE = {
    'mmdet': ('init_detector', 'inference_detector'),
    'mmseg': ('init_model', 'inference_model'),
}


@only_safe_loading()
def predict(
    config: str,
    checkpoint: str,
    images: Sequence[Path],
    out: Path,
    *,
    cfg_options: Sequence[str] = (),
    score_thr: float = 0.3,
) -> None:
    """Write predictions and pictures of them.

    Args:
        config: A config file of mmdet or mmseg.
        checkpoint: A file with every tensor of the model.
        images: Images, and folders that are searched recursively.
        out: A new folder.
        cfg_options: Changes of the config, see :func:`convnext_dense.run.options.read_config`.
        score_thr: Detections below this score are left out.

    Raises:
        UserError: A file does not exist or cannot be used, ``out`` is not empty, or images could not be read. In the
            last case the predictions of all others have been written.
    """
    files = find_images(images)
    check_source(checkpoint, 'checkpoint')
    cfg = read_config(config, cfg_options)
    toolkit = cfg.get('default_scope')
    if toolkit not in INFERENCE:
        raise UserError(f'{config} is of the toolkit {toolkit!r}: predictions are for mmdet and mmseg')
    check_toolkit(toolkit)
    if out.exists() and any(out.iterdir()):
        raise UserError(f'{out} is not empty: give a new folder, nothing was written')
    fit_to_machine(cfg, 'none')
    model, run_on_image = _load(cfg, checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    writer = (
        _DetectionWriter(model.dataset_meta['classes'], out, score_thr) if toolkit == 'mmdet' else _LabelMapWriter(out)
    )
    picture_writer = _PictureWriter(cfg, model, out / 'pictures', writer.drawing_options)
    unreadable = []
    for name, path in progress(list(files.items())):
        image = read_image(path)
        if image is None:
            unreadable.append(path)
            continue
        sample = run_on_image(model, image)
        picture_writer.add(name, image, sample)
        writer.add(name, image, sample)
    writer.finish()
    print(f'\npredictions for {len(files) - len(unreadable)} of {len(files)} images are in {out}')
    if unreadable:
        raise UserError(
            f'{len(unreadable)} files could not be read as images and were skipped: {", ".join(map(str, unreadable))}'
        )


def find_images(sources: Sequence[Path]) -> dict[str, Path]:
    """Find the images to predict.

    Args:
        sources: Files, and folders that are searched recursively.

    Returns:
        The file of each name in the output. Names of files in folders keep their sub-folders.

    Raises:
        UserError: A source does not exist, there is no image, or two files would be written under one name.
    """
    files: dict[str, Path] = {}
    stems: dict[Path, Path] = {}  # outputs have another suffix than images
    for source in sources:
        if not source.exists():
            raise UserError(f'there is no image or folder {source}: check the path')
        for path in _images_in(source):
            name = path.name if source.is_file() else str(path.relative_to(source))
            stem = Path(name).with_suffix('')
            if stem in stems:
                raise UserError(f'{stems[stem]} and {path} would be written under one name: give them in two calls')
            stems[stem] = path
            files[name] = path
    if not files:
        raise UserError(f'there is no image in {", ".join(map(str, sources))} (looked for {", ".join(SUFFIXES)})')
    return files


def _images_in(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted(path for path in source.rglob('*') if path.suffix.lower() in SUFFIXES)


def read_image(path: Path) -> np.ndarray | None:
    """Read an image as (H, W, 3) uint8 in BGR order, turned as its EXIF data say; None if it cannot be read."""
    encoded = np.fromfile(path, np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None


def _load(cfg: Config, checkpoint: str) -> tuple[Any, Callable[[nn.Module, np.ndarray], Any]]:
    """Return the trained model and the function of its toolkit that runs it on one image."""
    apis = importlib.import_module(f'{cfg.default_scope}.apis')
    build, run_on_image = (getattr(apis, name) for name in INFERENCE[cfg.default_scope])
    return build(cfg, SCHEME + checkpoint, device=get_device()), run_on_image


class _PictureWriter:
    """Draw predictions on their images."""

    def __init__(self, cfg: Config, model: nn.Module, folder: Path, drawing_options: dict[str, Any]) -> None:
        self.folder = folder
        self.drawing_options = drawing_options
        self.visualizer: Visualizer = VISUALIZERS.build(dict(cfg.visualizer, name='predict', vis_backends=None))
        self.visualizer.dataset_meta = model.dataset_meta

    def add(self, name: str, image: np.ndarray, sample: Any) -> None:
        self.visualizer.add_datasample(
            name,
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
            sample,
            draw_gt=False,
            out_file=str(_new_file(self.folder, name)),
            **self.drawing_options,
        )


class _LabelMapWriter:
    """Write the label map of each image as a PNG of class indices."""

    def __init__(self, out: Path) -> None:
        self.folder = out / 'labels'
        self.drawing_options: dict[str, Any] = {}

    def add(self, name: str, image: np.ndarray, sample: Any) -> None:
        labels = sample.pred_sem_seg.data[0].cpu().numpy()  # (1, H, W) -> (H, W)
        cv2.imwrite(str(_new_file(self.folder, name)), labels.astype(np.uint8))

    def finish(self) -> None:
        pass


class _DetectionWriter:
    """Collect detections and write them as one COCO file."""

    def __init__(self, classes: Sequence[str], out: Path, score_thr: float) -> None:
        self.path = out / 'predictions.json'
        self.classes = classes
        self.score_thr = score_thr
        self.drawing_options = dict(pred_score_thr=score_thr)
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, name: str, image: np.ndarray, sample: Any) -> None:
        height, width = image.shape[:2]
        self.images.append(dict(id=len(self.images) + 1, file_name=name, height=height, width=width))
        instances = sample.pred_instances.cpu().numpy()
        for index in np.flatnonzero(instances.scores >= self.score_thr).tolist():
            ids = dict(id=len(self.annotations) + 1, image_id=len(self.images))
            self.annotations.append(ids | coco_annotation(instances, index))

    def finish(self) -> None:
        categories = [dict(id=number, name=name) for number, name in enumerate(self.classes, start=1)]
        content = dict(images=self.images, annotations=self.annotations, categories=categories)
        self.path.write_text(json.dumps(content))


def coco_annotation(instances: Any, index: int) -> dict:
    """Return one detection in COCO's form, with its score and without ids of its own and of its image.

    Args:
        instances: mmdet's ``InstanceData`` as numpy arrays: scores (N,), labels (N,), bboxes (N, 4) as corners in
            pixels, and masks (N, H, W) if the model has them.
        index: Which of the N detections.
    """
    from pycocotools import mask as coco_mask  # a dependency of mmdet, not of mmseg

    x0, y0, x1, y1 = (round(float(value), 2) for value in instances.bboxes[index])
    annotation = dict(
        category_id=int(instances.labels[index]) + 1,
        bbox=[x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
        area=round((x1 - x0) * (y1 - y0), 2),
        score=round(float(instances.scores[index]), 4),
        iscrowd=0,
    )
    if 'masks' in instances:
        mask = instances.masks[index].astype(np.uint8)
        rle = coco_mask.encode(np.asfortranarray(mask))
        annotation['segmentation'] = dict(size=rle['size'], counts=rle['counts'].decode())
        annotation['area'] = int(mask.sum())
    return annotation


def _new_file(folder: Path, name: str) -> Path:
    """Return the PNG of an image name in ``folder``; its folder exists afterwards."""
    path = folder / Path(name).with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
