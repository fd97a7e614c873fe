"""Trained detectors and segmentors in Python: ``Predictor(config, checkpoint)(images)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.registry import TRANSFORMS
from mmengine.runner import autocast

from convnext_dense.engine.trained_model import load_model, test_pipeline
from convnext_dense.errors import UserError
from convnext_dense.images import Images, check_pixels, images_of
from convnext_dense.models.block import prepare_for_inference
from convnext_dense.results import Detections, LabelMap, Result
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.options import read_config
from convnext_dense.toolkits import check_toolkit
from convnext_dense.weights.safe_reading import only_safe_loading
from convnext_dense.weights.sources import check_source


class Predictor:
    """A trained detector or segmentor of mmdet or mmseg that reads images as its own test does.

    Args:
        config: A config file, or a config of mmengine.
        checkpoint: A file with every tensor of the model, or another source of weights, see
            :func:`convnext_dense.weights.sources.fetch`.
        cfg_options: Changes of the config, see :func:`convnext_dense.run.options.read_config`.
        device: Such as ``'cuda:1'``; None takes the first GPU, or the CPU.

    Attributes:
        model: The toolkit's model.
        names: Of the classes.
        palette: A colour (R, G, B) per class, or empty.

    Example::

        for result in Predictor('mask_rcnn.py', 'mask_rcnn.pth')('photos/'):
            print(result.names[result.labels[0]], result.boxes[0], result.scores[0])

    Raises:
        UserError: The config or the checkpoint cannot be used.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        *,
        cfg_options: Sequence[str] = (),
        device: str | None = None,
    ) -> None:
        check_source(str(checkpoint), 'checkpoint')
        if not isinstance(config, Config):
            cfg = read_config(str(config), cfg_options)
        elif cfg_options:
            raise UserError('cfg_options change a config file, found a Config: change it before')
        else:
            cfg = config.copy()
        check_toolkit(cfg.get('default_scope') or 'mmengine')
        fit_to_machine(cfg, 'none')
        with only_safe_loading():
            self.model: Any = load_model(cfg, str(checkpoint)).to(device or get_device())
        prepare_for_inference(self.model)
        classes: Any = self.model.dataset_meta
        self.names: list[str] = classes['classes']
        self.palette: list[list[int]] = classes['palette']
        self._half = bool((cfg.get('test_cfg') or {}).get('fp16'))  # as the loop of a test
        self._loader, *steps = _without_annotations(test_pipeline(cfg))
        self._load_file = TRANSFORMS.build(self._loader)
        self._transform = Compose(steps)

    def __call__(self, images: Images, batch_size: int = 1) -> list[Result]:
        """Return a result for each image, in their order.

        Args:
            images: A file, a folder that is searched recursively, or an array; or several of them. Arrays are
                (height, width, channels) as the pipeline's loader returns them, except that three channels are RGB;
                (N, height, width, channels) is a batch.
            batch_size: So many images go through the model at once, if they have one size behind the pipeline.

        Raises:
            UserError: An image cannot be read.
        """
        results: list[Result] = []
        batch: list[dict[str, Any]] = []
        for image in images_of(images):
            packed = self._transform(self._load(image))
            same_size = not batch or batch[0]['inputs'].shape == packed['inputs'].shape
            if len(batch) == batch_size or not same_size:
                results += self._run(batch)
                batch = []
            batch.append(packed)
        return results + (self._run(batch) if batch else [])

    def with_picture(self, image: str | Path | np.ndarray) -> tuple[np.ndarray, Result]:
        """Return one image as the pipeline has loaded it, (height, width, 3) RGB uint8, and its result.

        Raises:
            UserError: It cannot be read.
        """
        loaded = self._load(Path(image) if isinstance(image, str) else image)
        picture = as_picture(loaded['img'])
        return picture, self._run([self._transform(loaded)])[0]

    def _load(self, image: Path | np.ndarray) -> dict[str, Any]:
        """Return what the loading step of the pipeline returns."""
        start: dict[str, Any] = dict(img_id=0, seg_fields=[])
        if isinstance(image, np.ndarray):
            kind = type(self._load_file).__name__
            if kind != 'LoadImageFromFile':
                raise UserError(f'arrays replace LoadImageFromFile, the test pipeline begins with {kind}: give paths')
            colour = image.ndim == 3 and image.shape[2] == 3
            array = np.ascontiguousarray(image[:, :, ::-1]) if colour else image
            return TRANSFORMS.build(dict(self._loader, type='LoadImageFromNDArray'))(dict(start, img=array))
        check_pixels(image, image)
        try:
            loaded = self._load_file(dict(start, img_path=str(image)))
        except Exception as error:  # every backend and decoder has its own
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise UserError(f'{image} could not be read as an image ({reason}): check the file') from error
        if loaded is None:  # ignore_empty of the loader
            raise UserError(f'{image} could not be read as an image: check the file')
        return loaded

    @torch.no_grad()
    def _run(self, batch: list[dict[str, Any]]) -> list[Result]:
        """Return the results for what the pipeline has packed."""
        data = {key: [packed[key] for packed in batch] for key in batch[0]}
        with autocast(enabled=self._half):
            samples = self.model.test_step(data)
        return [self._result(sample) for sample in samples]

    def _result(self, sample: Any) -> Result:
        """Return what a data sample of mmdet or mmseg holds."""
        if 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int64)  # (1, H, W) -> (H, W)
            return LabelMap(labels, self.names, self.palette)
        if 'pred_instances' not in sample or 'labels' not in sample.pred_instances:
            raise UserError(
                f'{type(self.model).__name__} predicts neither instances of classes nor a label map: '
                'give a detector or a segmentor'
            )
        instances = sample.pred_instances.cpu().numpy()
        if instances.labels.size and instances.labels.max() >= len(self.names):
            raise UserError(
                f'the model has predicted the class {instances.labels.max()}, but only {len(self.names)} are named '
                f'({", ".join(self.names[:3])}, ...): correct test_dataloader.dataset.metainfo.classes'
            )
        best_first = np.argsort(-instances.scores, kind='stable')
        return Detections(
            instances.bboxes[best_first],
            instances.scores[best_first],
            instances.labels[best_first],
            self.names,
            sample.ori_shape,
            instances.masks[best_first] if 'masks' in instances else None,
            self.palette,
        )


def _without_annotations(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps of a test pipeline but those that load annotations, which an image alone does not have.

    Raises:
        UserError: No step is left, or one is unknown.
    """
    kept = []
    with TRANSFORMS.switch_scope_and_registry(None) as registry:  # of the config's toolkit
        annotations: Any = registry.get('mmengine.LoadAnnotations')  # mmcv's, which the toolkits inherit from
        for step in steps:
            kind: Any = step['type'] if isinstance(step['type'], type) else registry.get(step['type'])
            if kind is None:
                raise UserError(
                    f'the test pipeline has an unknown step {step["type"]}: import the module that defines it'
                )
            if not issubclass(kind, annotations):
                kept.append(step)
    if not kept:
        raise UserError('the config has no test_dataloader.dataset.pipeline, which reads the images: add it')
    return kept


def as_picture(image: np.ndarray) -> np.ndarray:
    """Return an image of mmcv as one to draw on: (height, width, 3) RGB uint8.

    Args:
        image: (height, width) or (height, width, channels), of any type; of at least three channels the first are
            B, G, R. Values above 255 are scaled so that the largest is 255.
    """
    image = image[:, :, None] if image.ndim == 2 else image
    channels = image[:, :, 2::-1] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    if channels.dtype == np.uint8:
        return np.ascontiguousarray(channels)
    values = channels.astype(np.float32)
    peak = float(values.max(initial=0))
    return np.clip(values * (255 / peak if peak > 255 else 1), 0, 255).astype(np.uint8)
