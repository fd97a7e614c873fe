"""The built-in data: split, geometry, both layouts, and what writing refuses."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from convnext_dense import UserError
from convnext_dense.sample_data import load_sources, write_sample_data

pytest.importorskip('sklearn')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp('data') / 'digits', num_train=12, num_val=8)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_train_and_val_share_no_digit():
    parts = load_sources(seed=0)
    train, val = ({digit.tobytes() for digit in parts[split].digits} for split in ('train', 'val'))
    assert not train & val
    assert len(parts['train'].digits) == 1397 and len(parts['val'].digits) == 400
    assert set(parts['train'].labels) == set(parts['val'].labels) == set(range(10))


def test_deterministic_by_seed(folder, tmp_path):
    again = write_sample_data(tmp_path / 'again', num_train=12, num_val=8)
    assert digest(again) == digest(folder)
    other = write_sample_data(tmp_path / 'other', num_train=12, num_val=8, seed=1)
    assert digest(other) != digest(folder)


def test_coco_geometry(folder):
    """Polygons, boxes and areas agree when COCO's own code rasterises them."""
    coco = pytest.importorskip('pycocotools.coco').COCO(folder / 'coco/annotations/instances_train2017.json')
    assert len(coco.imgs) == 12 and len(coco.anns) >= 12
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.shape == (192, 192)
        assert mask.sum() == pytest.approx(annotation['area'], rel=0.04)
        ys, xs = np.nonzero(mask)
        x, y, w, h = annotation['bbox']
        assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - [x, y, x + w, y + h]).max() <= 1
        image = cv2.imread(str(folder / 'coco/train2017' / coco.imgs[annotation['image_id']]['file_name']))
        assert image.shape == (192, 192, 3)


def test_every_object_survives_mmdets_pipeline(folder):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules

    register_all_modules()
    file = folder / 'coco/annotations/instances_val2017.json'
    count = len(json.loads(file.read_text())['annotations'])
    for poly2mask in (True, False):
        data = CocoDataset(
            data_root=str(folder / 'coco'),
            ann_file=str(file),
            data_prefix=dict(img='val2017/'),
            metainfo=dict(classes=tuple('0123456789')),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=poly2mask),
                dict(type='PackDetInputs'),
            ],
        )
        samples = [data[i]['data_samples'].gt_instances for i in range(len(data))]
        assert sum(len(sample) for sample in samples) == count
        assert all(area > 50 for sample in samples for area in sample.masks.areas)


def test_ade_labels(folder):
    root = folder / 'ade/ADEChallengeData2016'
    images = sorted((root / 'images/validation').iterdir())
    labels = [
        cv2.imread(str(root / 'annotations/validation' / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED) for path in images
    ]
    assert len(labels) == 8
    for label in labels:
        assert label.shape == (128, 128) and label.dtype == np.uint8
        assert label.max() <= 10 and (label == 0).any() and (label > 0).any()


def test_official_names(folder, tmp_path):
    """Under COCO's names the same pixels; the ids and names are COCO's own."""
    named = write_sample_data(tmp_path / 'named', names='coco', num_train=12, num_val=8)
    here, there = digest(folder), digest(named)
    different = {path for path in here if here[path] != there[path]}
    assert different == {
        'coco/annotations/instances_train2017.json',
        'coco/annotations/instances_val2017.json',
        'sample_data.json',
    }
    mmdet = pytest.importorskip('mmdet.datasets')
    content = json.loads((named / 'coco/annotations/instances_val2017.json').read_text())
    # All 80, as in COCO: a model of the official recipe predicts any of them, and mmdet looks its id up here.
    assert [c['name'] for c in content['categories']] == list(mmdet.CocoDataset.METAINFO['classes'])
    assert [c['id'] for c in content['categories']][9:13] == [10, 11, 13, 14]
    assert content['categories'][-1] == dict(id=90, name='toothbrush', supercategory='digit')
    assert {annotation['category_id'] for annotation in content['annotations']} <= set(range(1, 11))


def test_never_overwrites_something_else(folder, tmp_path):
    before = digest(folder)
    write_sample_data(folder, num_train=12, num_val=8)  # the same: nothing to do
    with pytest.raises(UserError, match='sample data of other settings'):
        write_sample_data(folder, num_train=13, num_val=8)
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(UserError, match='something else than sample data'):
        write_sample_data(tmp_path)
    assert digest(folder) == before and (tmp_path / 'thesis.txt').read_text() == 'precious'


@pytest.mark.parametrize(
    'options, sentence', [(dict(names='voc'), 'use one of digits, coco'), (dict(num_val=0), 'at least one image')]
)
def test_bad_arguments(options, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        write_sample_data(tmp_path / 'new', **options)
    assert not (tmp_path / 'new').exists()
