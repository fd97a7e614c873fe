"""Written layouts, splits, and the way there and back."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_formats import coco_content, label_png, picture, write, write_coco_folder

from convnext_dense.dataset.formats import convert, read_labels
from convnext_dense.dataset.label_maps import mask_of
from convnext_dense.dataset.records import LabelledData, LabelledImage, Object
from convnext_dense.dataset.split import split_images
from convnext_dense.errors import UserError

pytest.importorskip('supervision')


def named(*names: str) -> list[LabelledImage]:
    return [LabelledImage(None, name, (1, 1)) for name in names]


def random_polygon(rng: np.random.Generator, width: int, height: int) -> list[float]:
    """A star-shaped polygon of 5 to 12 vertices, with fractions of a pixel."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 13)))
    radii = rng.uniform(12, 30, len(angles))
    x = (rng.uniform(35, width - 35) + radii * np.cos(angles)).clip(0, width)
    y = (rng.uniform(35, height - 35) + radii * np.sin(angles)).clip(0, height)
    return np.stack([x, y], axis=1).round(2).flatten().tolist()


def box_of(polygon: list[float]) -> tuple[float, ...]:
    points = np.reshape(polygon, (-1, 2))
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


@pytest.mark.parametrize('classes', [['x', 'y z', 'ü'], ['one']])
def test_coco_to_yolo_and_back(classes, tmp_path):
    rng = np.random.default_rng(0)
    splits = {}
    for split in ('train', 'val'):
        images = []
        for name in ('a b.jpg', 'deep/é.jpg'):
            width, height = (int(side) for side in rng.integers(120, 900, 2))
            image = LabelledImage(picture(tmp_path / split / name, width, height), name, (height, width))
            for label in (0, 2, 1, 2):
                polygon = random_polygon(rng, width, height)
                image.objects.append(Object(label % len(classes), box_of(polygon), [polygon]))
            x0, y0 = rng.uniform(0, 60, 2).tolist()
            image.objects.append(Object(len(classes) - 1, (x0, y0, x0 + 33.3, y0 + 21.7)))
            images.append(image)
        splits[split] = images
    data = LabelledData('detection', classes, splits)
    convert(data, tmp_path / 'coco')
    convert(read_labels(tmp_path / 'coco'), tmp_path / 'yolo', 'yolo')
    convert(read_labels(tmp_path / 'yolo'), tmp_path / 'back')
    back = read_labels(tmp_path / 'back')
    assert back.classes == classes
    for split, images in splits.items():
        found_images = {image.name: image for image in back.splits[split]}
        assert set(found_images) == {'a b.jpg', 'deep/é.jpg'}
        for image in images:
            found = found_images[image.name]
            assert found.size == image.size and len(found.objects) == 5
            for before, after in zip(image.objects, found.objects):
                assert before.label == after.label
                assert np.abs(np.subtract(before.box, after.box)).max() <= 1
                assert (before.segmentation is None) == (after.segmentation is None)
                if before.segmentation:
                    one, other = (mask_of(item, image.size) for item in (before, after))
                    assert (one & other).sum() / (one | other).sum() >= 0.98


def test_what_yolo_cannot_hold_is_counted(tmp_path):
    ring = np.zeros((80, 100), np.uint8)
    ring[20:60, 20:60] = 1
    ring[30:50, 30:50] = 0
    rle = coco_mask.encode(np.asfortranarray(ring))
    content = coco_content()
    content['annotations'].append(
        dict(
            id=12,
            image_id=7,
            category_id=18,
            bbox=[20, 20, 40, 40],
            segmentation=dict(size=[80, 100], counts=rle['counts'].decode()),
            area=1200,
            iscrowd=0,
        )
    )
    data = read_labels(write_coco_folder(tmp_path / 'in', **content))
    data.splits['val'] = data.splits['train'][2:]
    written = convert(data, tmp_path / 'out', 'yolo')
    assert dict(written.losses) == {
        'crowds, which YOLO does not have: left out': 1,
        'objects of several parts, written as one polygon with seams of no width between the parts': 1,
        'holes in masks, which YOLO does not have: filled': 1,
        'images with boxes and polygons, of which ultralytics uses the boxes alone': 1,
    }
    back = read_labels(tmp_path / 'out')
    objects = {image.name: image.objects for image in back.splits['train']}
    assert len(objects['sub/größe.jpg']) == 1, 'two parts stay one object'
    parts = mask_of(objects['sub/größe.jpg'][0], (80, 100))
    assert (
        200 <= parts.sum() <= 260 and parts[2:8, 2:8].all() and parts[2:8, 52:58].all() and not parts[4:, 20:40].any()
    )
    assert np.abs(np.subtract(objects['a b.jpg'][1].box, (20, 20, 60, 60))).max() <= 1
    assert objects['empty.jpg'] == []


def test_coco_layout(tmp_path):
    data = read_labels(write_coco_folder(tmp_path / 'in'))
    with pytest.raises(UserError, match='leaves nothing for training'):
        convert(data, tmp_path / 'out', val=1.0)
    assert not (tmp_path / 'out').exists(), 'nothing half written'
    convert(data, tmp_path / 'out', val=0.34, seed=1)
    found = {}
    for split in ('train', 'val'):
        content = json.loads((tmp_path / f'out/coco/annotations/instances_{split}2017.json').read_text())
        assert content['categories'] == [
            dict(id=1, name='Käfer'),
            dict(id=2, name='dog'),
            dict(id=3, name='never'),
        ]
        assert [image['id'] for image in content['images']] == list(range(1, len(content['images']) + 1))
        names = {image['id']: image['file_name'] for image in content['images']}
        for image in content['images']:
            assert (tmp_path / f'out/coco/{split}2017' / image['file_name']).is_symlink()
        for annotation in content['annotations']:
            found.setdefault(names[annotation['image_id']], []).append(annotation)
    assert [(one['category_id'], one['bbox'], one['area']) for one in found['a b.jpg']] == [(2, [10, 20, 30, 40], 1200)]
    parts, crowd = found['sub/größe.jpg']
    assert parts['area'] == 200 and len(parts['segmentation']) == 2
    assert crowd['iscrowd'] == 1 and crowd['area'] == 6 and crowd['segmentation']['counts'] == [0, 3, 77, 3, 7917]
    assert 'segmentation' not in found['a b.jpg'][0]
    with pytest.raises(UserError, match='is not an empty folder: nothing was written'):
        convert(data, tmp_path / 'out')


def test_copies_are_independent(tmp_path):
    data = read_labels(write_coco_folder(tmp_path / 'in'))
    convert(data, tmp_path / 'out', copy=True)
    assert not [path for path in (tmp_path / 'out').rglob('*.jpg') if path.is_symlink()]
    assert len(list((tmp_path / 'out').rglob('*.jpg'))) == 3


def test_ade_layout_of_label_maps(tmp_path):
    labels = np.arange(8000, dtype=np.uint8).reshape(80, 100) % 3
    for number in range(5):
        picture(tmp_path / f'in/images/{number}.jpg')
        label_png(tmp_path / f'in/labels/{number}.png', labels)
    convert(read_labels(tmp_path / 'in', classes=['a', 'b', 'c d']), tmp_path / 'out')
    root = tmp_path / 'out/ade/ADEChallengeData2016'
    assert (root / 'classes.txt').read_text() == 'a\nb\nc d\n'
    assert len(list((root / 'images/training').iterdir())) == 4
    assert [path.stem for path in (root / 'annotations/validation').iterdir()] == [
        path.stem for path in (root / 'images/validation').iterdir()
    ]
    back = read_labels(tmp_path / 'out')
    assert back.classes == ['a', 'b', 'c d'] and {split: len(images) for split, images in back.splits.items()} == {
        'train': 4,
        'val': 1,
    }
    with pytest.raises(UserError, match='label maps do not separate objects'):
        convert(back, tmp_path / 'coco', 'coco')


def test_ade_layout_of_outlines(tmp_path):
    square = [[20, 10, 40, 10, 40, 30, 20, 30]]
    inner = [[25, 15, 30, 15, 30, 20, 25, 20]]
    images = []
    for number in range(2):
        image = LabelledImage(picture(tmp_path / f'{number}.jpg'), f'{number}.jpg', (80, 100))
        image.objects = [
            Object(1, (25, 15, 30, 20), inner),
            Object(0, (20, 10, 40, 30), square),
            Object(0, (0, 0, 5, 5)),
        ]
        images.append(image)
    data = LabelledData('detection', ['big', 'small'], {'train': images[:1], 'val': images[1:]})
    written = convert(data, tmp_path / 'out', 'ade')
    labels = np.array(Image.open(tmp_path / 'out/ade/ADEChallengeData2016/annotations/training/0.png'))
    assert labels[12, 22] == 1 and labels[17, 27] == 2 and labels[2, 2] == 0 and set(np.unique(labels)) == {0, 1, 2}
    assert (labels > 0).sum() == 400
    assert written.losses == {
        'objects without an outline, which a label map does not hold: left out': 2,
        'objects that overlap those of another class: the smaller one is on top': 2,
    }
    boxes = LabelledData('detection', ['x'], {'train': named('a.jpg'), 'val': named('b.jpg')})
    with pytest.raises(UserError, match='these objects have only boxes'):
        convert(boxes, tmp_path / 'boxes', 'ade')


@pytest.mark.parametrize(
    'count, val, test, sizes', [(10, 0.2, 0, [8, 2]), (50, 0.1, 0.1, [40, 5, 5]), (3, 0.1, 0.1, [1, 1, 1])]
)
def test_split_by_image(count, val, test, sizes):
    images = named(*(f'{number}.jpg' for number in range(count)))
    splits = split_images(images, val, test, seed=3)
    assert [len(members) for members in splits.values()] == sizes
    assert sorted(image.name for members in splits.values() for image in members) == sorted(
        image.name for image in images
    )
    names = [[image.name for image in members] for members in splits.values()]
    assert names == [[image.name for image in members] for members in split_images(images, val, test, 3).values()]
    others = [[image.name for image in members] for members in split_images(images, val, test, 4).values()]
    assert names != others


@pytest.mark.parametrize('group', [r'^(.*)_\d+\.png', 'folder'])
def test_split_by_group(group):
    images = named(*(f'{place}/{place}_{number}.png' for place in 'abcde' for number in range(8)))
    splits = split_images(images, 0.4, group=group)
    places = {split: {image.name[0] for image in members} for split, members in splits.items()}
    assert not places['train'] & places['val'] and len(places['val']) == 2
    with pytest.raises(UserError, match='matches nothing in the name a/a_0.png'):
        split_images(images, 0.2, group='x')
    with pytest.raises(UserError, match='is not a regular expression'):
        split_images(images, 0.2, group='(')
    with pytest.raises(UserError, match='40 images in 1 groups cannot be divided'):
        split_images(images, 0.2, group=r'\.png')


def test_splitting_again_keeps_images_of_one_name_apart(tmp_path):
    for split, colour in (('train', 10), ('val', 200)):
        for name in ('a.jpg', f'{split}.jpg'):
            (tmp_path / 'in' / split).mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (30, 20), (colour,) * 3).save(tmp_path / 'in' / split / name)
        write(
            tmp_path / f'in/{split}.json',
            dict(
                images=[
                    dict(id=1, file_name='a.jpg', width=30, height=20),
                    dict(id=2, file_name=f'{split}.jpg', width=30, height=20),
                ],
                categories=[dict(id=1, name='x')],
                annotations=[],
            ),
        )
    convert(read_labels(tmp_path / 'in'), tmp_path / 'out', val=0.5, split_again=True)
    written = read_labels(tmp_path / 'out')
    assert sorted(image.name for image in written.images) == ['train.jpg', 'train/a.jpg', 'val.jpg', 'val/a.jpg']
    for image in written.images:
        assert np.array(Image.open(image.path))[0, 0, 0] == (10 if 'train' in image.name else 200)
