"""tools/export.py --part: graphs that equal the model at any size, and what is refused."""

import importlib.util
import re

import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from convnext_dense import ConvNeXt, UserError
from convnext_dense.export import Features, check_onnx, export_onnx

pytest.importorskip('mmdet', reason='needs mmdet')
pytest.importorskip('mmseg', reason='needs mmsegmentation')
needs_exporter = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('onnx', 'onnxscript', 'onnxruntime'))),
    reason="needs onnx, onnxscript and onnxruntime: pip install 'convnext-dense[export]'",
)
MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'


def save_model(config, path):
    """A checkpoint as a training leaves it, with random values that show in every tensor; gives the model."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for name, param in model.backbone.named_parameters():
        if param.ndim == 1:
            param.data.copy_(torch.randn_like(param) * 0.2 + ('bias' not in name))
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, path)
    return model.eval()


@needs_exporter
@pytest.mark.parametrize(
    'config, options, parts',
    [(MASK_RCNN, ['--with-neck'], 'backbone and neck'), (UPERNET, ['--part', 'backbone'], 'backbone')],
)
def test_graph_equals_the_checkpoint(config, options, parts, tmp_path, tool):
    model = save_model(config, tmp_path / 'trained.pth')
    out = tmp_path / 'deploy/model.onnx'
    message, text = tool('export', config, tmp_path / 'trained.pth', out, *options)
    assert message is None
    assert f'{out}: {parts}, ' in text
    assert text.endswith(' in ONNX Runtime, at 1x3x64x96, 2x3x71x133, 3x3x160x128\n')
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    assert [value.name for value in session.get_outputs()] == [
        f'level{i}' for i in range(5 if '--with-neck' in options else 4)
    ]
    image = torch.randn(1, 3, 75, 201)  # a size that the tool did not see
    with torch.no_grad():
        expected = model.backbone(image)
        expected = model.neck(expected) if '--with-neck' in options else expected
    for found, want in zip(session.run(None, {'image': image.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, want.numpy(), atol=2e-5, rtol=1e-4)


@needs_exporter
def test_other_arguments_and_a_graph_that_differs(tmp_path):
    model = Features(
        ConvNeXt(
            dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32]),
            use_grn=True,
            out_indices=(1, 2),
            layer_scale_init_value=0,
            in_channels=4,
        )
    ).eval()
    export_onnx(model, tmp_path / 'model.onnx', 4)
    assert check_onnx(model, tmp_path / 'model.onnx', 4) <= 1e-5
    model.backbone.norm2.bias.data += 0.01
    with pytest.raises(UserError, match=r'model.onnx differs from the model by .*e-0\d \(relative, at most 1e-04'):
        check_onnx(model, tmp_path / 'model.onnx', 4)


@pytest.mark.parametrize(
    'out, options, message',
    [
        (
            'model.pb',
            [],
            r'error: the graph is written as ONNX, .* found .*model.pb: give a name that ends in .onnx, .*',
        ),
        ('model.xml', ['--part', 'neck'], r'error: the graph is written as ONNX, .* found .*model.xml: give a name .*'),
        (
            'model.onnx',
            ['--part', 'backbone', '--size', '64x96'],
            r'error: --size and --evaluate are for whole models, found --part backbone: leave them out',
        ),
        (
            'model.onnx',
            ['--cfg-options', 'model.neck=None', '--with-neck'],
            r'error: the model of this config \(MaskRCNN\) has no neck: leave out --with-neck',
        ),
    ],
)
def test_refused(out, options, message, tmp_path, tool):
    (tmp_path / 'trained.pth').touch()
    found, _ = tool('export', MASK_RCNN, tmp_path / 'trained.pth', tmp_path / out, *options)
    assert re.fullmatch(message, found), found
    assert not (tmp_path / out).exists()


def test_neck_must_be_in_the_checkpoint(tmp_path, tool):
    model = save_model(MASK_RCNN, tmp_path / 'trained.pth')
    torch.save(model.backbone.state_dict(), tmp_path / 'backbone.pth')
    message, _ = tool('export', MASK_RCNN, tmp_path / 'backbone.pth', tmp_path / 'model.onnx', '--with-neck')
    assert 'error: the checkpoint lacks ' in message and 'neck.lateral_convs.0.conv.weight' in message


def test_without_the_exporter(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, which is not installed: pip install 'convnext-dense\[export\]'"):
        export_onnx(Features(ConvNeXt('atto')), tmp_path / 'model.onnx')
