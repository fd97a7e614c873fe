"""A trained model and what its config says about classes and images."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from convnext_dense.engine.load_hook import fit_checkpoint
from convnext_dense.errors import UserError
from convnext_dense.export.whole import FAMILIES, WholeModel
from convnext_dense.runtime.metadata import FORMAT
from convnext_dense.version import __version__
from convnext_dense.weights.sources import facts_of, read

KNOWN_STEPS = ('LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs', 'PackSegInputs')
PACKAGES = ('torch', 'torchvision', 'onnx', 'onnxscript', 'mmdet', 'mmsegmentation')


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Return the trained model of a config, in ``eval()`` mode on the CPU.

    The attribute ``dataset_meta`` holds the names and the palette of the classes.

    Raises:
        UserError: The checkpoint lacks tensors of the model, or the toolkit has no whole models to export.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    if scope not in ('mmdet', 'mmseg'):
        raise UserError(
            f'whole models of mmdet and mmseg can be exported, found the toolkit {scope!r}: '
            'export --part backbone or --part neck'
        )
    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    model_cfg = cfg.model.copy()
    model_cfg.pop('init_cfg', None)
    if model_cfg.get('backbone'):
        model_cfg.backbone = dict(model_cfg.backbone, init_cfg=None)
    model = MODELS.build(model_cfg)
    found = read(checkpoint)
    fit_checkpoint(model, found, whole_model=True)
    model.load_state_dict(found['state_dict'])
    model.dataset_meta = class_meta(cfg, found)
    return model.eval()


def class_meta(cfg: Config, checkpoint: Any) -> dict[str, Any]:
    """Return names and palette of the classes: of the config's test set, otherwise of the checkpoint.

    Raises:
        UserError: Neither names the classes.
    """
    dataset = (cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    while 'datasets' in dataset:
        dataset = dataset['datasets'][0]
    meta: dict[str, Any] = {}
    kind = DATASETS.get(dataset['type']) if dataset.get('type') else None
    meta.update(getattr(kind, 'METAINFO', {}))
    meta.update(dataset.get('metainfo') or {})
    saved = (checkpoint.get('meta') or {}).get('dataset_meta') or {} if isinstance(checkpoint, dict) else {}
    for key, value in saved.items():
        meta.setdefault(str(key).lower(), value)
    if not meta.get('classes'):
        raise UserError(
            'neither the config nor the checkpoint names the classes: add '
            "--cfg-options test_dataloader.dataset.metainfo.classes=\"['cat','dog']\""
        )
    palette: Any = meta.get('palette')
    classes = [meta['classes']] if isinstance(meta['classes'], str) else list(meta['classes'])
    usable = isinstance(palette, (list, tuple)) and len(palette) >= len(classes)
    return dict(classes=classes, palette=[list(colour) for colour in palette] if usable else [])


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
    steps = list(test_pipeline(cfg))
    resizes = []
    for step in steps:
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


def test_pipeline(cfg: Config) -> list[Any]:
    """Return the steps of the test pipeline; empty if the config has none."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    return list(dataset.get('pipeline') or cfg.get('test_pipeline') or [])


def _versions() -> dict[str, str]:
    versions = dict(convnext_dense=__version__, torch=torch.__version__)
    for package in PACKAGES[1:]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
