"""tools/export.py for whole models: files, refusals, and metrics beside those of tools/test.py."""

from __future__ import annotations

import json

import pytest
import tiny_models
from helpers import ROOT
from mmengine.config import Config

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
for package in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(package, reason="pip install 'convnext-dense[export]'")

import torch  # noqa: E402

from convnext_dense.runtime import LabelMap, Model  # noqa: E402

CONFIGS = {'UperNet': 'upernet/convnext_digits.py', 'Mask R-CNN': 'mask_rcnn/convnext_digits.py'}


def save(cfg, path):
    model = tiny_models.build(cfg)
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


@pytest.fixture
def fcn(tmp_path):
    """Paths of the config and the checkpoint of a tiny FCN."""
    cfg = tiny_models.model_config('FCN')
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(200, 64), keep_ratio=True),
        dict(type='PackSegInputs'),
    ]
    cfg.dump(tmp_path / 'fcn.py')
    save(cfg, tmp_path / 'fcn.pth')
    return tmp_path / 'fcn.py', tmp_path / 'fcn.pth'


def test_segmentor_of_a_fixed_size(fcn, tmp_path, tool):
    config, checkpoint = fcn
    message, text = tool('export', config, checkpoint, tmp_path / 'out/fcn.onnx', '--size', '64x96')
    assert message is None
    assert 'out/fcn.onnx: whole EncoderDecoder, ' in text and 'height 64 and width 96, proved in ONNX Runtime: ' in text
    model = Model(tmp_path / 'out/fcn.onnx')
    assert model.names == list('abcd') and model.metadata['size'] == [64, 96]
    assert model.metadata['resize'] == dict(scale=[200, 64], keep_ratio=True)
    assert model.metadata['mean'] == pytest.approx([123.675, 116.28, 103.53])
    result = model([torch.randint(0, 256, (30, 50, 3), dtype=torch.uint8).numpy()])[0]
    assert isinstance(result, LabelMap) and result.size == (30, 50)


def test_a_file_that_differs_is_removed(fcn, tmp_path, tool, monkeypatch):
    config, checkpoint = fcn
    written = []

    def wrong(model, path, metadata, size):
        from convnext_dense.export.files import write_onnx

        model.decode_head.conv_seg.bias.data[0] += 1
        write_onnx(model, path, metadata, size)
        model.decode_head.conv_seg.bias.data[0] -= 1
        written.append(path.exists())

    monkeypatch.setattr('convnext_dense.export.model.write_onnx', wrong)
    message, _ = tool('export', config, checkpoint, tmp_path / 'fcn.onnx', '--size', '64x96')
    assert message.startswith('error: ') and 'of the labels of the file equal the module' in message
    assert written == [True] and not (tmp_path / 'fcn.onnx').exists()
    assert '--size' not in message
    message, _ = tool('export', config, checkpoint, tmp_path / 'fcn.onnx')
    assert message.endswith('hold the size that it was recorded with: try --size HEIGHTxWIDTH')
    assert written == [True, True] and not (tmp_path / 'fcn.onnx').exists()


def test_pipeline_that_the_runner_does_not_know(fcn, tmp_path, tool):
    config, checkpoint = fcn
    changes = ['test_dataloader.dataset.pipeline.1.type=RandomFlip']
    message, _ = tool('export', config, checkpoint, tmp_path / 'fcn.onnx', '--cfg-options', *changes)
    assert message.startswith('error: the test pipeline has RandomFlip, which the runner of exported files does not')
    assert not (tmp_path / 'fcn.onnx').exists()


@pytest.mark.export
@pytest.mark.parametrize('name', list(CONFIGS))
def test_metrics_are_those_of_the_checkpoint(name, digits, tmp_path, tool):
    """Random weights find little, but what they find is scored alike by the file and the toolkit."""
    config = ROOT / 'configs' / CONFIGS[name]
    cfg = Config.fromfile(config)
    save(cfg, tmp_path / 'model.pth')
    message, text = tool('export', config, tmp_path / 'model.pth', tmp_path / 'model.onnx', '--evaluate', data=digits)
    assert message is None, message
    values = [float(value) for value in text.strip().splitlines()[-1].split() if value[0].isdigit()]
    message, _ = tool('test', config, tmp_path / 'model.pth', '--work-dir', tmp_path / 'work', data=digits)
    assert message is None, message
    metrics = json.loads((tmp_path / 'work/metrics.json').read_text())
    key = 'mIoU' if name == 'UperNet' else 'coco/segm_mAP'
    assert values[0] == pytest.approx(metrics[key], abs=0.2 if name == 'UperNet' else 0.002)
