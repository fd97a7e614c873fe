"""A trained detector: its file finds, object by object, what the toolkit finds in real images of a val set."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from helpers import ROOT

pytest.importorskip('mmdet')
for package in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(package, reason="pip install 'convnext-dense[export]'")

from convnext_dense import Predictor  # noqa: E402
from convnext_dense.export.evaluate import evaluate, of_checkpoint, of_file  # noqa: E402
from convnext_dense.run.options import read_config  # noqa: E402
from convnext_dense.runtime import Model  # noqa: E402

FOLDER = ROOT / 'tests/reference/digits_mask_rcnn'
CONFIG, CHECKPOINT = FOLDER / 'small.py', FOLDER / 'weights.pth'
RUNTIMES = ['onnxruntime', *(['openvino'] if importlib.util.find_spec('openvino') else [])]


def test_file_of_a_trained_model(digits, tmp_path, tool, monkeypatch):
    message, _ = tool('export', CONFIG, CHECKPOINT, tmp_path / 'model.onnx', data=digits)
    assert message is None, message
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(digits))
    cfg = read_config(str(CONFIG))
    average_precision = evaluate(of_checkpoint(cfg, str(CHECKPOINT)), cfg)
    assert average_precision['coco/bbox_mAP'] >= 0.3
    images = sorted((digits / 'digits/coco/val2017').glob('*'))
    predictor = Predictor(str(CONFIG), str(CHECKPOINT))
    expected = [predictor(str(path))[0] for path in images]
    assert sum(len(result.scores) for result in expected) >= 20
    for runtime in RUNTIMES:
        model = Model(tmp_path / 'model.onnx', runtime=runtime)
        for path, wanted in zip(images, expected, strict=True):
            found = model(str(path))[0]
            assert found.labels.tolist() == wanted.labels.tolist(), path
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-3)
            np.testing.assert_allclose(found.boxes, wanted.boxes, atol=0.1)
            assert (found.masks != wanted.masks).mean() <= 0.001
        for name, value in evaluate(of_file(model), cfg).items():
            assert value == pytest.approx(average_precision[name], abs=0.002), (runtime, name)
