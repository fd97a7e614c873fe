"""tools/predict.py: images in, pictures and COCO JSON or label maps out."""

import importlib
import json

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


@pytest.fixture
def checkpoint(tmp_path):
    """Random weights of a digits config with the class names a training would save."""

    def save(config):

        cfg = Config.fromfile(ROOT / 'configs' / config)
        importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=True)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        meta = dict(dataset_meta=dict(classes=cfg.metainfo.classes, palette=[(0, 0, 0)] * len(cfg.metainfo.classes)))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'model.pth')
        return tmp_path / 'model.pth'

    return save


def test_detector(digits, checkpoint, tmp_path, tool):
    images = digits / 'digits/coco/val2017'
    path = checkpoint('mask_rcnn/convnext_digits.py')
    message, text = tool(
        'predict',
        ROOT / 'configs/mask_rcnn/convnext_digits.py',
        path,
        images,
        '--out',
        tmp_path / 'out',
        '--score-thr',
        0.05,
    )
    assert message is None and 'predictions for 8 of 8 images' in text
    result = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [image['file_name'] for image in result['images']] == sorted(path.name for path in images.iterdir())
    assert {(image['height'], image['width']) for image in result['images']} == {(192, 192)}
    assert [category['name'] for category in result['categories']] == list('0123456789')
    assert result['annotations'], 'random weights find something at a threshold of 0.05'
    coco = pytest.importorskip('pycocotools.coco').COCO(tmp_path / 'out/predictions.json')
    for annotation in coco.anns.values():
        assert annotation['score'] >= 0.05 and 1 <= annotation['category_id'] <= 10
        assert coco.annToMask(annotation).sum() == annotation['area']
    assert len(list((tmp_path / 'out/pictures').iterdir())) == 8


def test_segmentor_skips_what_it_cannot_read(digits, checkpoint, tmp_path, tool):
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    photo = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    cv2.imwrite(str(folder / 'sub/a.png'), photo)
    (folder / 'broken.jpg').write_bytes(b'not an image')
    (folder / 'empty.jpg').write_bytes(b'')
    path = checkpoint('upernet/convnext_digits.py')
    message, text = tool(
        'predict', ROOT / 'configs/upernet/convnext_digits.py', path, folder, '--out', tmp_path / 'out'
    )
    assert message == (
        f'error: 2 files could not be read as images and were skipped: {folder}/broken.jpg, {folder}/empty.jpg'
    )
    labels = cv2.imread(str(tmp_path / 'out/labels/sub/a.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (70, 90) and labels.max() <= 10
    assert (tmp_path / 'out/pictures/sub/a.png').exists()


@pytest.mark.parametrize(
    'images, sentence',
    [
        (['gone'], 'there is no image or folder gone'),
        (['empty'], 'there is no image in'),
        (['a/x.png', 'b/x.jpg'], 'would be written under one name'),
    ],
)
def test_refusals(images, sentence, tmp_path, tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'b', 'empty'):
        (tmp_path / name).mkdir()
    (tmp_path / 'a/x.png').touch()
    (tmp_path / 'b/x.jpg').touch()
    message, _ = tool('predict', ROOT / 'configs/mask_rcnn/convnext_digits.py', 'c.pth', *images, '--out', 'out')
    assert message.startswith('error: ') and sentence in message
    assert not (tmp_path / 'out').exists()


def test_never_writes_into_a_used_folder(digits, checkpoint, tmp_path, tool):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/thesis.txt').write_text('precious')
    path = checkpoint('upernet/convnext_digits.py')
    message, _ = tool('predict', ROOT / 'configs/upernet/convnext_digits.py', path, digits, '--out', tmp_path / 'out')
    assert 'is not empty: give a new folder' in message
