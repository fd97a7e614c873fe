"""Recipes at full size, with random weights, as files in ONNX Runtime."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from random_weights import random_weights

for package in ('mmdet', 'mmseg', 'onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(package, reason="pip install 'convnext-dense[export]' and both toolkits")

from convnext_dense.export import prove, whole_model  # noqa: E402
from convnext_dense.export.files import with_score_threshold, write_onnx  # noqa: E402
from convnext_dense.export.proof import SHAPES  # noqa: E402
from convnext_dense.runtime.sessions import ONNXRuntimeSession  # noqa: E402


@pytest.mark.parametrize(
    'config',
    [
        pytest.param('mask_rcnn/convnext_t_3x_coco.py', marks=pytest.mark.slow),
        pytest.param('upernet/convnext_t_512_160k_ade20k.py', marks=pytest.mark.slow),
        pytest.param('cascade_mask_rcnn/convnext_t_3x_coco.py', marks=pytest.mark.export),
        pytest.param('upernet/convnext_b_512_160k_ade20k.py', marks=pytest.mark.export),
    ],
)
def test_recipe_as_a_file(config, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    num_classes = 80 if cfg.default_scope == 'mmdet' else 150
    model.dataset_meta = dict(classes=[str(number) for number in range(num_classes)], palette=[])
    whole = whole_model(random_weights(model))
    path = tmp_path / 'model.onnx'
    write_onnx(whole, path, dict(format=1))

    def open_file(threshold):
        return ONNXRuntimeSession(path if threshold is None else with_score_threshold(path, threshold))

    proof = prove(model, whole, open_file)
    assert proof.shapes == SHAPES
    assert proof.label is not None or proof.detections >= 100
