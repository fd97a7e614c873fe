"""What an exported file says about itself, from the model, the config and the checkpoint."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from convnext_dense.engine.trained_model import test_pipeline
from convnext_dense.errors import UserError
from convnext_dense.export.whole import FAMILIES, WholeModel
from convnext_dense.runtime.metadata import FORMAT
from convnext_dense.version import __version__
from convnext_dense.weights.sources import facts_of

KNOWN_STEPS = ('LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs', 'PackSegInputs')
PACKAGES = ('torch', 'torchvision', 'onnx', 'onnxscript', 'mmdet', 'mmsegmentation')


def metadata_of(
    model: nn.Module, whole: WholeModel, cfg: Config, checkpoint: str, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Return what the exported file says about itself, see :mod:`convnext_dense.runtime.metadata`."""
    assert type(whole) in FAMILIES
    preprocessor: Any = model.data_preprocessor
    meta: Any = model.dataset_meta

    def values(name: str) -> list[float] | None:
        value = getattr(preprocessor, name, None)
        return None if value is None else value.flatten().tolist()

    mean, std = values('mean'), values('std')
    if whole.wants_bgr:  # the graph takes RGB
        mean, std = mean and mean[::-1], std and std[::-1]
    return dict(
        format=FORMAT,
        task=whole.task,
        names=meta['classes'],
        palette=meta['palette'],
        resize=resize_of(cfg),
        size=list(size) if size else None,
        mean=mean,
        std=std,
        licence=facts_of(checkpoint).licence,
        versions=_versions(),
        **type(whole).settings(model),
    )


def resize_of(cfg: Config) -> dict[str, Any] | None:
    """Return the ``Resize`` of the test pipeline as the runner knows it, or None if there is none.

    Raises:
        UserError: The pipeline changes images in another way.
    """
    resizes = []
    for step in test_pipeline(cfg):
        kind = str(step['type']).split('.')[-1]
        if kind not in KNOWN_STEPS:
            raise UserError(
                f'the test pipeline has {kind}, which the runner of exported files does not know (it knows '
                f'{", ".join(KNOWN_STEPS)}): change test_dataloader.dataset.pipeline, or export --part neck'
            )
        if kind == 'Resize':
            resizes.append(step)
    if not resizes:
        return None
    if len(resizes) > 1 or resizes[0].get('scale') is None:
        raise UserError(
            'the test pipeline has no single Resize(scale=...), which the runner needs: change '
            'test_dataloader.dataset.pipeline'
        )
    scale = resizes[0]['scale']
    scale = [int(scale), int(scale)] if isinstance(scale, int) else [int(side) for side in scale]
    return dict(scale=scale, keep_ratio=bool(resizes[0].get('keep_ratio', False)))


def _versions() -> dict[str, str]:
    versions = dict(convnext_dense=__version__, torch=torch.__version__)
    for package in PACKAGES[1:]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
