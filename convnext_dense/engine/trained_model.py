"""A trained model of a config and a checkpoint, and what the config says about its classes and images."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_state_dict
from torch import nn

from convnext_dense.engine.finite import check_model
from convnext_dense.engine.load_hook import fit_checkpoint
from convnext_dense.errors import UserError
from convnext_dense.weights.sources import load_from_convnext_dense

TOOLKITS = ('mmdet', 'mmseg')


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Return the trained model of a config, in ``eval()`` mode on the CPU.

    It takes the checkpoints that ``tools/test.py`` takes, and refuses those that it refuses.

    Args:
        cfg: Of mmdet or mmseg.
        checkpoint: A source of weights, see :func:`convnext_dense.weights.sources.fetch`.

    Returns:
        The model; its attribute ``dataset_meta`` holds ``classes`` and ``palette``, see :func:`class_meta`.

    Raises:
        UserError: The config is of another toolkit, the checkpoint lacks tensors of the model or has them in other
            shapes, its weights are NaN or infinite, or nothing names the classes.
    """
    scope = cfg.get('default_scope')
    if scope not in TOOLKITS:
        raise UserError(f'a config of {" or ".join(TOOLKITS)} was wanted, found one of {scope or "no toolkit"!r}')
    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    model_cfg = cfg.model.copy()
    if cfg.get('data_preprocessor'):  # as the runner does
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model_cfg)
    found = load_from_convnext_dense(checkpoint)
    fit_checkpoint(model, found, whole_model=True)
    state = {name.removeprefix('module.'): value for name, value in found.get('state_dict', found).items()}
    load_state_dict(model, state, strict=False)  # tensors of other parts, such as a training loss, are left out
    check_model(model, f'the model of {checkpoint}')
    model.dataset_meta = class_meta(cfg, found)
    return model.eval()


def class_meta(cfg: Config, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and palette of the classes.

    The ``metainfo`` of the config's test set comes first, then what the training saved in the checkpoint, then what
    the class of the test set knows.

    Returns:
        ``classes``, a list of names, and ``palette``, a colour (R, G, B) for each or an empty list.

    Raises:
        UserError: None of them names the classes.
    """
    dataset = test_dataset(cfg)
    written: Any = dataset.get('metainfo') or {}
    known: Any = written
    if dataset.get('type'):
        known = DATASETS.build(dict(dataset, lazy_init=True, pipeline=[])).metainfo  # reads names from files too
    saved: Any = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    saved = {str(key).lower(): value for key, value in saved.items()} if isinstance(saved, Mapping) else {}
    first, second = (known, saved) if written.get('classes') else (saved, known)
    meta = first if first.get('classes') else second
    if not meta.get('classes'):
        raise UserError(
            'neither the config nor the checkpoint names the classes: add '
            "--cfg-options test_dataloader.dataset.metainfo.classes=\"['cat','dog']\""
        )
    classes = [meta['classes']] if isinstance(meta['classes'], str) else list(meta['classes'])
    palette = meta.get('palette')
    usable = isinstance(palette, (list, tuple)) and len(palette) >= len(classes)
    return dict(classes=classes, palette=[list(colour) for colour in palette] if usable else [])


def test_dataset(cfg: Config) -> dict[str, Any]:
    """Return the config of the test set inside wrappers, the first one of several; empty if there is none."""
    dataset: Any = (cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}).get('dataset') or {}
    while dataset.get('dataset') or dataset.get('datasets'):
        dataset = dataset['datasets'][0] if dataset.get('datasets') else dataset['dataset']
    return dataset


def test_pipeline(cfg: Config) -> list[dict[str, Any]]:
    """Return the steps of the pipeline of the test set; empty if the config has none."""
    return list(test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline') or [])
