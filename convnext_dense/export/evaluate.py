"""An exported file on the test set of a config."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from convnext_dense.errors import UserError
from convnext_dense.results import Detections
from convnext_dense.runtime.model import Model


def evaluate(model: Model, cfg: Config) -> dict[str, float]:
    """Run a file through the test set and return the metrics of the config's ``test_evaluator``.

    The runner reads and resizes the images; the toolkit gives the annotations and the metrics.

    Raises:
        UserError: The config has no test set.
    """
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        raise UserError('the config has no test_dataloader or test_evaluator: leave out --evaluate, or add them')
    init_default_scope(cfg.default_scope)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        samples = batch['data_samples']
        for sample in samples:
            _predict(model, sample)
        evaluator.process(data_samples=samples, data_batch=batch)
    return evaluator.evaluate(len(loader.dataset))


def _predict(model: Model, sample: Any) -> None:
    """Put the result for the image of a data sample of mmdet or mmseg into it."""
    result = model([sample.img_path])[0]
    if isinstance(result, Detections):
        instances = InstanceData(
            bboxes=torch.from_numpy(result.boxes),
            scores=torch.from_numpy(result.scores),
            labels=torch.from_numpy(result.labels).long(),
        )
        if result.masks is not None:
            instances.masks = torch.from_numpy(result.masks)
        sample.pred_instances = instances
    else:
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(result.labels)[None])
