"""An exported file on the test set of a config, and the checkpoint beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from convnext_dense.engine.trained_model import load_model
from convnext_dense.errors import UserError
from convnext_dense.models.block import prepare_for_inference
from convnext_dense.results import Detections
from convnext_dense.runtime.model import Model

# Takes a batch of the test set's loader and returns its data samples with predictions.
Predict = Callable[[dict[str, Any]], Sequence[Any]]


def evaluate(predict: Predict, cfg: Config) -> dict[str, float]:
    """Return the metrics of the config's ``test_evaluator`` on its test set; empty if a detector finds nothing.

    Args:
        predict: :func:`of_file` or :func:`of_checkpoint`.
        cfg: Of mmdet or mmseg.

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
        evaluator.process(data_samples=predict(batch), data_batch=batch)
    return evaluator.evaluate(len(loader.dataset))


def of_checkpoint(cfg: Config, checkpoint: str) -> Predict:
    """Predict with the toolkit's model."""
    model: Any = prepare_for_inference(load_model(cfg, checkpoint))
    return torch.no_grad()(model.test_step)


def of_file(model: Model) -> Predict:
    """Predict with an exported file; the runner reads and resizes the images."""

    def predict(batch: dict[str, Any]) -> Sequence[Any]:
        for sample in batch['data_samples']:
            _predict(model, sample)
        return batch['data_samples']

    return predict


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
