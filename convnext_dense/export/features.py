"""A backbone, or a backbone and its neck, as an ONNX graph of any batch, height and width: ``tools/export.py``."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from convnext_dense.engine.load_hook import fit_checkpoint
from convnext_dense.errors import UserError
from convnext_dense.weights.sources import check_structure, read

INSTALL = "pip install 'convnext-dense[export]'"
CHECKED_SHAPES = ((1, 64, 96), (2, 71, 133), (3, 160, 128))  # batch, height, width; odd ones too
TOLERANCE = 1e-4  # relative, of fp32 in another order of additions


class Features(nn.Module):
    """A backbone and, where there is one, the neck behind it; named as in a detector or segmentor."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W), normalised as the config's data_preprocessor does -> one tensor a level."""
        features = self.backbone(image)
        return tuple(features if self.neck is None else self.neck(features))


def load_features(cfg: Config, checkpoint: str, with_neck: bool) -> Features:
    """The trained backbone, or backbone and neck, of a config and a checkpoint.

    Raises:
        UserError: The config has no such part, or the checkpoint does not fill it.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    parts = ('backbone', 'neck') if with_neck else ('backbone',)
    for part in parts:
        if not cfg.model.get(part):
            raise UserError(
                f'the model of this config ({cfg.model.type}) has no {part}: '
                + ('leave out --with-neck' if part == 'neck' else 'give a config whose model has one')
            )
    if not isinstance(cfg.model[parts[-1]], dict):
        raise UserError('the neck of this config is a list of necks: leave out --with-neck, or give a config with one')
    features = Features(*(MODELS.build(dict(cfg.model[part], init_cfg=None)) for part in parts))
    found = read(checkpoint)
    check_structure(found, checkpoint)
    fit_checkpoint(features, found, whole_model=True)
    names = tuple(f'{part}.' for part in parts)
    features.load_state_dict({name: value for name, value in found['state_dict'].items() if name.startswith(names)})
    return features.eval()


def export_onnx(model: nn.Module, out: Path, in_channels: int = 3) -> None:
    """Write ``model`` as an ONNX graph: input ``image`` (N, C, H, W), outputs ``level0``, ``level1`` and so on.

    Batch, height and width are free.

    Raises:
        UserError: What the exporter needs is not installed.
    """
    if torch.__version__ < '2.6':  # a TorchVersion: compared as a version
        raise UserError(f'the export to ONNX needs torch 2.6 or newer, found {torch.__version__}: update torch')
    for package in ('onnx', 'onnxscript'):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'the export to ONNX needs {package}, which is not installed: {INSTALL}')
    example = torch.zeros(2, in_channels, 96, 160, device=next(model.parameters()).device)
    with torch.no_grad():
        levels = len(model(example))
    free = {dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch's, about its own parts
        program: Any = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=(free,),
            verbose=False,
            input_names=['image'],
            output_names=[f'level{i}' for i in range(levels)],
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(out))


@torch.no_grad()
def check_onnx(
    model: nn.Module, path: Path, in_channels: int = 3, shapes: Iterable[tuple[int, int, int]] = CHECKED_SHAPES
) -> float:
    """The largest relative difference between ``model`` and the graph in ONNX Runtime, over images of ``shapes``.

    Raises:
        UserError: It is above :data:`TOLERANCE`.
        ImportError: ONNX Runtime is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch, height, width in shapes:
        image = torch.randn(batch, in_channels, height, width, generator=generator)
        for expected, found in zip(model(image), session.run(None, {'image': image.numpy()}), strict=True):
            if tuple(expected.shape) != found.shape:
                raise UserError(
                    f'{path.name} gives {found.shape} for an image of {tuple(image.shape)}, the model gives '
                    f'{tuple(expected.shape)}: this neck cannot be exported, leave out --with-neck'
                )
            difference = np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy())
            largest = max(largest, float(difference))
    if not largest <= TOLERANCE:
        raise UserError(
            f'{path.name} differs from the model by {largest:.1e} (relative, at most {TOLERANCE:.0e} was '
            'wanted) and was removed: try another onnxruntime'
        )
    return largest
