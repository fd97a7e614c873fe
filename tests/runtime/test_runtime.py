"""The runner of exported files: against the toolkits, and without torch."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from exported import DETECTION
from helpers import ROOT

import convnext_dense
from convnext_dense import UserError
from convnext_dense.results import Detections, LabelMap
from convnext_dense.runtime import Model
from convnext_dense.runtime.model import paste_masks, resized_size, windows


class FixedOutputs:
    """A session that gives the same outputs for every image, and keeps what it was given."""

    def __init__(self, metadata, **outputs):
        self.metadata = json.dumps(metadata)
        self.outputs = outputs
        self.image = None

    def run(self, image, names):
        self.image = image
        return [self.outputs[name] for name in names]


def model_of(session, monkeypatch):
    monkeypatch.setattr('convnext_dense.runtime.model.open_session', lambda *_: session)
    return Model('model.onnx')


def detections(**changes):
    masks = np.zeros((1, 3, 4, 4), np.float32)
    masks[0, 0, :, :2] = 1
    return FixedOutputs(
        {**DETECTION, **changes},
        boxes=np.float32([[[4, 8, 12, 24], [0, 0, 40, 40], [0, 0, 0, 0]]]),
        scores=np.float32([[0.9, 0.6, 0]]),
        labels=np.int32([[1, 0, -1]]),
        masks=masks,
    )


def test_detections_in_pixels_of_the_original(monkeypatch):
    session = detections()
    result = model_of(session, monkeypatch)([np.full((64, 32, 3), 7, np.uint8)])[0]
    assert isinstance(result, Detections) and result.size == (64, 32)
    assert session.image.shape == (1, 3, 32, 16) and session.image.dtype == np.float32
    assert result.boxes.tolist() == [[8, 16, 24, 48], [0, 0, 32, 64]], 'twice as large, and inside of the image'
    assert result.labels.tolist() == [1, 0] and result.names == ['cat', 'dog']
    assert len(model_of(session, monkeypatch)(np.zeros((2, 64, 32, 3), np.uint8))) == 2, 'a batch'
    assert len(model_of(session, monkeypatch)(np.zeros((64, 32, 3), np.uint8))) == 1, 'one image'
    # The left half of the box, without 6 pixels at each of its ends, where the mask fades out on two sides.
    assert result.masks[0].sum() == 8 * 32 - 2 * 6 and result.masks[0, 18:46, 8:16].all()


def test_fixed_size_is_padded_by_the_mean(monkeypatch):
    session = detections(size=[32, 48], mean=[10.0, 20.0, 30.0])
    model_of(session, monkeypatch)([np.full((64, 32, 3), 7, np.uint8)])
    assert session.image.shape == (1, 3, 32, 48)
    assert session.image[0, :, 0, 0].tolist() == [7, 7, 7] and session.image[0, :, 0, 16].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    'size, resize, expected',
    [
        ((480, 640), dict(scale=[1333, 800], keep_ratio=True), (800, 1067)),
        ((400, 1000), dict(scale=[1333, 800], keep_ratio=True), (533, 1333)),
        ((480, 640), dict(scale=[2048, 512], keep_ratio=False), (512, 2048)),
        ((5, 7), None, (5, 7)),
    ],
)
def test_resized_size(size, resize, expected):
    assert resized_size(size, resize) == expected
    mmcv = pytest.importorskip('mmcv')
    if resize and resize['keep_ratio']:
        image = np.zeros((*size, 3), np.uint8)
        assert mmcv.imrescale(image, tuple(resize['scale'])).shape[:2] == expected


def test_windows():
    assert windows((5, 4), (4, 4), (2, 2)) == [(slice(0, 4), slice(0, 4)), (slice(1, 5), slice(0, 4))]
    assert windows((3, 9), (4, 4), (3, 3)) == [
        (slice(0, 3), slice(0, 4)),
        (slice(0, 3), slice(3, 7)),
        (slice(0, 3), slice(5, 9)),
    ]


def test_masks_equal_mmdet():
    torch = pytest.importorskip('torch')
    fcn_mask_head = pytest.importorskip('mmdet.models.roi_heads.mask_heads.fcn_mask_head')
    generator = np.random.default_rng(0)
    corners = generator.uniform(-3, 60, (20, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).clip(0, [50, 40, 50, 40])
    boxes = np.float32(boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])])
    masks = generator.random((len(boxes), 28, 28)).astype(np.float32)
    pasted = paste_masks(masks, boxes, (40, 50), None)
    np.testing.assert_array_equal(paste_masks(masks, boxes, (40, 50), 0.5), pasted >= 0.5)
    for mask, box, found in zip(masks, boxes, pasted, strict=True):
        part, place = fcn_mask_head._do_paste_mask(
            torch.from_numpy(mask)[None, None], torch.from_numpy(box)[None], 40, 50, skip_empty=True
        )
        expected = np.zeros((40, 50), np.float32)
        expected[place] = part[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_segmentor_equals_mmseg_at_another_size(mode, monkeypatch):
    """Images are resized before the model, and logits behind it to the size of the original."""
    pytest.importorskip('mmseg')
    tiny_models = pytest.importorskip('tiny_models')
    import torch
    from mmseg.structures import SegDataSample
    from test_families import ModuleAsFile

    from convnext_dense.export import whole_model

    cfg = tiny_models.model_config('FCN')
    cfg.model.test_cfg = dict(mode=mode, crop_size=(64, 64), stride=(42, 42)) if mode == 'slide' else dict(mode=mode)
    toolkit = tiny_models.build(cfg)
    whole = whole_model(toolkit)
    session = ModuleAsFile(whole)
    session.metadata = json.dumps(
        dict(
            format=1,
            task='segmentation',
            names=list('abcd'),
            palette=[],
            resize=dict(scale=[2000, 120], keep_ratio=True),
            size=None,
            mean=None,
            **type(whole).settings(toolkit),
        )
    )
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    with torch.no_grad():
        result = model_of(session, monkeypatch)([image])[0]
        resized = cv2.resize(image, (120, 154), interpolation=cv2.INTER_LINEAR)
        bgr = torch.from_numpy(np.ascontiguousarray(resized[:, :, ::-1].transpose(2, 0, 1)))
        sample = SegDataSample(metainfo=dict(ori_shape=(90, 70), img_shape=(154, 120), pad_shape=(154, 120)))
        expected = toolkit.test_step(dict(inputs=[bgr], data_samples=[sample]))[0].pred_sem_seg.data[0].numpy()
    assert isinstance(result, LabelMap) and len(np.unique(expected)) > 1
    assert (result.labels == expected).mean() >= 0.9999


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='there is no model file'):
        Model(tmp_path / 'gone.onnx')
    (tmp_path / 'model.pt').touch()
    with pytest.raises(UserError, match=r'ends in .onnx or .xml, found .*model.pt'):
        Model(tmp_path / 'model.pt')
    with pytest.raises(UserError, match='has metadata of format 2, 1 was wanted'):
        model_of(FixedOutputs(dict(format=2)), monkeypatch)
    model = model_of(detections(), monkeypatch)
    with pytest.raises(UserError, match=r'found \(4, 4\) uint8'):
        model([np.zeros((4, 4), np.uint8)])


WITHOUT_TORCH = """
import sys
for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'torchvision', 'pycocotools', 'cv2'):
    sys.modules[name] = None
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else find_spec(name, *rest)
"""


def run_without_torch(code, *arguments):
    return subprocess.run(
        [sys.executable, '-c', WITHOUT_TORCH + code, *map(str, arguments)],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        text=True,
        capture_output=True,
    )


def test_command_without_torch_and_opencv(small_file, tmp_path):
    pytest.importorskip('PIL')
    pictures = tmp_path / 'images'
    (pictures / 'sub').mkdir(parents=True)
    cv2.imwrite(str(pictures / 'sub/a.png'), np.zeros((16, 16, 3), np.uint8))
    (pictures / 'broken.jpg').write_bytes(b'not an image')
    done = run_without_torch(
        "import runpy; sys.argv[0] = 'runtime'; runpy.run_module('convnext_dense.runtime', run_name='__main__')",
        small_file,
        pictures,
        '--out',
        tmp_path / 'out',
    )
    assert done.returncode == 1, done.stderr
    sentence = f'error: 1 of 2 images were skipped, for the reasons above: {pictures}/broken.jpg'
    assert done.stderr.strip().splitlines()[-1] == sentence
    assert done.stdout.splitlines() == [
        f'skipped: {pictures}/broken.jpg could not be read as an image: check the file',
        f'predictions for 1 of 2 images are in {tmp_path}/out',
    ]
    written = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [(one['category_id'], one['bbox'], one['area']) for one in written['annotations']] == [
        (2, [0.0, 0.0, 8.0, 16.0], 8 * 16 - 4)
    ], 'the corners of a mask fade out'
    assert (tmp_path / 'out/pictures/sub/a.png').exists()


def test_package_without_torch():
    done = run_without_torch("""
import convnext_dense
assert convnext_dense.UserError and convnext_dense.__version__ and convnext_dense.ARCHS['tiny']
for name in convnext_dense.__all__:
    try:
        getattr(convnext_dense, name)
        print('has', name)
    except ModuleNotFoundError as error:
        print(error)
try:
    from convnext_dense import nothing
except ImportError as error:
    assert 'needs' not in str(error)
""")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    there = {line.removeprefix('has ') for line in lines if line.startswith('has ')}
    assert there == {'ARCHS', 'ISOTROPIC_ARCHS', 'UserError', '__version__'}
    missing = [line for line in lines if not line.startswith('has ')]
    assert missing == [
        f'convnext_dense.{name} needs torch and mmengine, which is not installed; mmengine comes in two '
        "distributions: install one of the extras, pip install 'convnext-dense[openmmlab]' or "
        "pip install 'convnext-dense[onedl]' (convnext-dense doctor says what else is missing)"
        for name in convnext_dense.__all__
        if name not in there
    ]
