"""tools/predict.py: images in, pictures and COCO JSON or label maps out."""

import importlib
import json
import struct
import zlib

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


def test_images_that_fail_leave_the_others_written(digits, checkpoint, tmp_path, tool):
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    generator = np.random.default_rng(0)
    cv2.imwrite(str(folder / 'sub/a.png'), generator.integers(0, 255, (70, 90, 3), np.uint8))
    cv2.imwrite(str(folder / 'dot.png'), generator.integers(0, 255, (1, 1, 3), np.uint8))
    cv2.imwrite(str(folder / 'thin.png'), generator.integers(0, 255, (1, 500, 3), np.uint8))
    (folder / 'broken.jpg').write_bytes(b'not an image')
    (folder / 'dangling.jpg').symlink_to(folder / 'gone.jpg')
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'folder.jpg').mkdir()
    (folder / 'huge.png').write_bytes(png_header(50_000, 50_000))
    path = checkpoint('mask_rcnn/convnext_digits.py')
    config = ROOT / 'configs/mask_rcnn/convnext_digits.py'
    message, text = tool('predict', config, path, folder, '--out', tmp_path / 'out')
    # A line of 1 x 500 pixels has no height any more at the size of the test.
    failed = [folder / name for name in ('broken.jpg', 'dangling.jpg', 'empty.jpg', 'huge.png', 'thin.png')]
    assert message == (
        'error: 5 of 7 images were skipped, for the reasons above: ' + ', '.join(str(path) for path in failed)
    )
    for path in failed:
        assert f'skipped: {path} ' in text
    assert f'{folder}/huge.png has more than 89,478,485 pixels: cut it into tiles, or set' in text
    written = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [(image['file_name'], image['height'], image['width']) for image in written['images']] == [
        ('dot.png', 1, 1),
        ('sub/a.png', 70, 90),
    ]
    assert (tmp_path / 'out/pictures/sub/a.png').exists() and (tmp_path / 'out/pictures/dot.png').exists()


def png_header(width, height):
    """The beginning of a PNG file of some size, as long as libraries need to know the size."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunks = b''
    for name, content in ((b'IHDR', header), (b'IDAT', zlib.compress(b'\0'))):
        chunks += struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
    return b'\x89PNG\r\n\x1a\n' + chunks


def test_segmentor(digits, checkpoint, tmp_path, tool):
    images = digits / 'digits/coco/val2017'
    path = checkpoint('upernet/convnext_digits.py')
    message, _ = tool('predict', ROOT / 'configs/upernet/convnext_digits.py', path, images, '--out', tmp_path / 'out')
    assert message is None
    assert len(list((tmp_path / 'out/pictures').iterdir())) == 8
    for label_map in (tmp_path / 'out/labels').iterdir():
        labels = cv2.imread(str(label_map), cv2.IMREAD_UNCHANGED)
        assert labels.shape == (192, 192) and labels.dtype == np.uint8 and labels.max() <= 10


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
    message, _ = tool(
        'predict', ROOT / 'configs/upernet/convnext_digits.py', path, digits, '--out', tmp_path / 'out/thesis.txt'
    )
    assert message.endswith('thesis.txt is a file: give a new folder, nothing was written')
