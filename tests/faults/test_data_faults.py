"""Faults of data and configs that have to stop training before its first iteration, injected under the real tools."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from forked import run_forked
from helpers import ROOT
from PIL import Image

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'
ANNOTATIONS = 'digits/coco/annotations/instances_train2017.json'
IMAGE = 'digits/coco/train2017/000000000001.jpg'
LABELS = 'digits/ade/ADEChallengeData2016/annotations/training/ADE_train_00000001.png'
SCENE = 'digits/ade/ADEChallengeData2016/images/training/ADE_train_00000001.jpg'


@pytest.fixture
def data(digits, tmp_path, monkeypatch):
    """A copy of the digits to damage."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return Path(shutil.copytree(digits, tmp_path / 'data'))


def stopped(tmp_path, config, data, *options, tool='train'):
    """Run a tool that has to stop before its first iteration; gives the sentence."""
    work = tmp_path / 'work'
    more = ('--cfg-options', *options) if options else ()
    outcome = run_forked(tool, config, '--work-dir', work, *more, log=tmp_path / 'log', data=data)
    assert outcome.status == 1, outcome.text
    assert 'Traceback' not in outcome.text, outcome.text
    assert outcome.error.startswith('error: the data cannot be used as they are: ')
    assert '\n' not in outcome.error
    assert not list(work.glob('*.pth')) and not list(work.glob('*/vis_data'))  # no runner was built
    assert (work / 'data_check.txt').read_text().startswith('stops: ')
    return outcome.error


def edit(path: Path, change) -> None:
    """Change the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_first(section: str, **values):
    return lambda content: content[section][0].update(values)


def without_segmentation(content):
    for annotation in content['annotations']:
        del annotation['segmentation']


JSON_FAULTS = {
    'box of inf': (set_first('annotations', bbox=[0, 0, float('inf'), 5]), "annotation 1, bbox [0, 0, inf, 5]: 'bbox'"),
    'NaN in a polygon': (
        set_first('annotations', segmentation=[[0, 0, float('nan'), 5, 5, 5]]),
        'annotation 1: a polygon is not finite',
    ),
    'broken run lengths': (
        set_first('annotations', segmentation=dict(size=[192, 192], counts='05')),
        'annotation 1: ',
    ),
    'polygon of four numbers': (set_first('annotations', segmentation=[[1, 2, 3, 4]]), 'annotation 1, segmentation'),
    'no segmentation': (without_segmentation, 'with_mask=False'),
    'unknown image': (set_first('annotations', image_id=999), 'annotation 1, 999: the image_id'),
    'unknown category': (set_first('annotations', category_id=999), 'annotation 1, 999: the category_id'),
    'no annotations': (lambda content: content.update(annotations=[]), "'annotations' is empty"),
    'missing key': (lambda content: content.pop('images'), "'images' is missing"),
    'name that differs': (set_first('categories', name='zero'), "the class '0' of metainfo.classes is no category"),
    'sizes of other images': (set_first('images', height=96, width=96), '192 x 192 instead of 96 x 96'),
    'name of a missing image': (set_first('images', file_name='gone.jpg'), 'gone.jpg: the image file does not exist'),
}


@pytest.mark.parametrize('name', JSON_FAULTS)
def test_annotation_file(name, data, tmp_path):
    change, sentence = JSON_FAULTS[name]
    edit(data / ANNOTATIONS, change)
    error = stopped(tmp_path, MASK_RCNN, data)
    assert sentence in error and 'instances_train2017.json' in error


def test_cut_annotation_file(data, tmp_path):
    text = (data / ANNOTATIONS).read_text()
    (data / ANNOTATIONS).write_text(text[: len(text) // 2])
    assert 'the file is not valid JSON, or cut off: ' in stopped(tmp_path, MASK_RCNN, data)


def turned(path: Path) -> None:
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    wide = image.resize((192, 96))
    wide.save(path, exif=exif)


@pytest.mark.parametrize(
    'damage, sentence',
    [
        (lambda path: path.write_bytes(b''), 'the image file is empty (0 bytes)'),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), 'cannot be read or is cut off'),
        (lambda path: path.write_text('no image'), 'the file is no image'),
        (lambda path: path.unlink(), 'the image file does not exist'),
        (turned, '192 x 96 instead of 192 x 192'),
    ],
    ids=['empty', 'cut', 'text', 'missing', 'turned'],
)
@pytest.mark.parametrize('config, path', [(MASK_RCNN, IMAGE), (UPERNET, SCENE)], ids=['detector', 'segmentor'])
def test_image_file(config, path, damage, sentence, data, tmp_path):
    if config == UPERNET and sentence.endswith('does not exist'):
        pytest.skip('images of a segmentor are those of the folder')
    damage(data / path)
    error = stopped(tmp_path, config, data)
    if config == UPERNET and damage is turned:
        sentence = '128 x 128 instead of 192 x 96'
    assert sentence in error and path.rsplit('/', 1)[-1].split('.')[0] in error


def labels(array: np.ndarray):
    return lambda path: cv2.imwrite(str(path), array)


@pytest.mark.parametrize(
    'damage, sentence',
    [
        (labels(np.full((128, 128), 11, np.uint8)), 'values [11]: values of the label map are no class: 11 classes'),
        (labels(np.zeros((128, 128, 3), np.uint8)), 'the label map has 3 channels'),
        (labels(np.full((128, 128), 300, np.uint16)), 'values [300]'),
        (labels(np.zeros((64, 64), np.uint8)), '64 x 64 instead of 128 x 128'),
        (lambda path: path.unlink(), 'the label map does not exist'),
        (lambda path: path.write_bytes(b''), 'the label map is empty (0 bytes)'),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), 'the label map cannot be read or is cut off'),
    ],
    ids=['above the classes', 'RGB', '16 bits', 'other size', 'missing', 'empty', 'cut'],
)
def test_label_map(damage, sentence, data, tmp_path):
    damage(data / LABELS)
    error = stopped(tmp_path, UPERNET, data)
    assert sentence in error and 'ADE_train_00000001.png' in error


def test_masks_of_0_and_255_for_two_classes(data, tmp_path):
    for path in (data / 'digits/ade').rglob('*.png'):
        cv2.imwrite(str(path), (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0) * np.uint8(255))
    config = tmp_path / 'two.py'
    config.write_text(
        f'_base_ = {str(UPERNET)!r}\n'
        "dataset = dict(metainfo=dict(classes=('background', 'digit'), palette=[[0, 0, 0], [9, 9, 9]]))\n"
        'train_dataloader = val_dataloader = test_dataloader = dict(dataset=dataset)\n'
        'loss = dict(class_weight=[0.5, 1.0])\n'
        'model = dict(decode_head=dict(num_classes=2, loss_decode=loss), auxiliary_head=dict(num_classes=2))\n'
    )
    error = stopped(tmp_path, config, data)
    assert "255 is ignored: 'digit' is never seen; write 1 instead of 255: cv2.imwrite" in error


TRAIN = 'train_dataloader.dataset'


@pytest.mark.parametrize(
    'config, options, sentence',
    [
        (MASK_RCNN, (f'{TRAIN}.filter_cfg.min_size=500',), '32 are smaller than min_size=500'),
        (MASK_RCNN, ('model.roi_head.mask_head.num_classes=9',), 'set model.roi_head.mask_head.num_classes=10'),
        (UPERNET, ('model.auxiliary_head.num_classes=12',), 'set model.auxiliary_head.num_classes=11'),
        (UPERNET, ('train_dataloader.batch_size=1',), 'model.decode_head pools to one pixel'),
        (UPERNET, ('train_dataloader.num_workers=0',), 'set train_dataloader.persistent_workers=False'),
        (MASK_RCNN, ('model.data_preprocessor.mean=[1,2,3,4]',), 'mean has 4 values and std 3, but images have 3'),
        (MASK_RCNN, ('model.roi_head.mask_head=None',), 'set val_evaluator.metric=bbox'),
    ],
)
def test_config(config, options, sentence, data, tmp_path):
    assert sentence in stopped(tmp_path, config, data, *options)


def test_classes_without_a_comma(data, tmp_path):
    config = tmp_path / 'balloon.py'
    config.write_text(
        f'_base_ = {str(MASK_RCNN)!r}\n'
        "data = dict(dataset=dict(metainfo=dict(classes=('balloon'))))\n"
        'train_dataloader = val_dataloader = test_dataloader = data\n'
    )
    assert "write the comma: ('balloon',)" in stopped(tmp_path, config, data)


def test_evaluator_of_other_data(data, tmp_path):
    error = stopped(tmp_path, MASK_RCNN, data, f'val_evaluator.ann_file={data / ANNOTATIONS}')
    assert 'val_evaluator.ann_file: ' in error and 'has other images than' in error


def test_several_faults_are_listed(data, tmp_path):
    for number in range(1, 6):
        (data / IMAGE.replace('1.jpg', f'{number}.jpg')).write_bytes(b'')
    edit(data / ANNOTATIONS, set_first('annotations', image_id=999))
    error = stopped(tmp_path, MASK_RCNN, data)
    assert 'annotation 1, 999' in error and 'image 1, ' in error and '(and 4 more)' in error
    listed = (tmp_path / 'work/data_check.txt').read_text()
    assert all(f'00000000000{number}.jpg' in listed for number in range(1, 6))
