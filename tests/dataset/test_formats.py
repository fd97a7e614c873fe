"""Every format, from files as its own tools write them, with their odd cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_dense.dataset.formats import find_format, read_labels
from convnext_dense.dataset.records import Object
from convnext_dense.errors import UserError

pytest.importorskip('supervision')


def picture(path: Path, width: int = 100, height: int = 80) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)
    return path


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return path


def coco_content(**changes) -> dict:
    """Ids with gaps, a class and an image without objects, a crowd as RLE, an object of two parts."""
    content = dict(
        images=[
            dict(id=7, file_name='a b.jpg', width=100, height=80),
            dict(id=3, file_name='sub/größe.jpg', width=100, height=80),
            dict(id=40, file_name='empty.jpg', width=100, height=80),
        ],
        categories=[dict(id=18, name='dog'), dict(id=3, name='Käfer'), dict(id=90, name='never')],
        annotations=[
            dict(id=5, image_id=7, category_id=18, bbox=[10, 20, 30, 40], area=1200, iscrowd=0),
            dict(
                id=9,
                image_id=3,
                category_id=3,
                bbox=[0, 0, 60, 10],
                segmentation=[[0, 0, 10, 0, 10, 10, 0, 10], [50, 0, 60, 0, 60, 10, 50, 10]],
                area=200,
                iscrowd=0,
            ),
            dict(
                id=11,
                image_id=3,
                category_id=18,
                bbox=[0, 0, 2, 3],
                segmentation=dict(size=[80, 100], counts=[0, 3, 77, 3, 7917]),
                area=6,
                iscrowd=1,
            ),
        ],
    )
    return content | changes


def write_coco_folder(folder: Path, **changes) -> Path:
    content = coco_content(**changes)
    for image in content['images']:
        picture(folder / 'train2017' / image['file_name'])
    write(folder / 'annotations/instances_train2017.json', content)
    return folder


def test_coco(tmp_path):
    data = read_labels(write_coco_folder(tmp_path))
    assert data.classes == ['Käfer', 'dog', 'never'], 'in the order of the ids'
    assert list(data.splits) == ['train'] and not data.losses
    first, second, third = data.splits['train']
    assert (first.name, second.name, third.name) == ('a b.jpg', 'sub/größe.jpg', 'empty.jpg')
    assert first.objects == [Object(1, (10, 20, 40, 60))], 'no outline of a box'
    assert [found.is_crowd for found in second.objects] == [False, True]
    assert second.objects[0].segmentation == [[0, 0, 10, 0, 10, 10, 0, 10], [50, 0, 60, 0, 60, 10, 50, 10]]
    assert third.objects == []


def test_coco_of_roboflow(tmp_path):
    """A file per split in the folder of its images, and a category 0 above all others."""
    for split in ('train', 'valid', 'test'):
        picture(tmp_path / split / 'x.jpg')
        write(
            tmp_path / split / '_annotations.coco.json',
            dict(
                images=[dict(id=0, file_name='x.jpg', width=100, height=80)],
                categories=[
                    dict(id=0, name='trees', supercategory='none'),
                    dict(id=1, name='oak', supercategory='trees'),
                ],
                annotations=[dict(id=0, image_id=0, category_id=1, bbox=[1, 2, 3, 4], segmentation=[], iscrowd=0)],
            ),
        )
    data = read_labels(tmp_path)
    assert data.classes == ['oak'] and sorted(data.splits) == ['test', 'train', 'val']
    assert data.splits['val'][0].objects == [Object(0, (1, 2, 4, 6))]


@pytest.mark.parametrize(
    'changes, sentence',
    [
        (dict(categories=[dict(id=18, name='dog'), dict(id=3, name='dog')]), 'names the classes dog more than once'),
        (dict(categories=[dict(id=18, name='dog')]), r'uses the category ids \[3\], which it does not define'),
        (dict(images=[dict(id=1, file_name='a b.jpg', width=1, height=1)] * 2), 'gives the image id 1 twice'),
    ],
)
def test_coco_refuses(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        read_labels(write_coco_folder(tmp_path, **changes))


def write_yolo_folder(folder: Path, names: object = ('cat', 'dog')) -> Path:
    """Boxes and polygons in one file, a score at the end of a line, an empty file, no file, a nested folder."""
    for name in ('train/a b.jpg', 'train/deep/ü.png', 'train/nothing.jpg', 'val/c.jpg'):
        picture(folder / 'images' / name)
    write(folder / 'labels/train/a b.txt', '0 0.5 0.5 0.2 0.25\n1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n')
    write(folder / 'labels/train/deep/ü.txt', '1.000000e+00 0.5 0.5 1 1 0.93\n')
    write(folder / 'labels/val/c.txt', '\n')
    names = list(names) if isinstance(names, tuple) else names
    write(folder / 'data.yaml', json.dumps(dict(path='/gone', train='images/train', val='images/val', names=names)))
    return folder


def test_yolo(tmp_path):
    data = read_labels(write_yolo_folder(tmp_path))
    assert data.classes == ['cat', 'dog'] and {split: len(images) for split, images in data.splits.items()} == {
        'train': 3,
        'val': 1,
    }
    by_name = {image.name: image for image in data.images}
    box, outlined = by_name['a b.jpg'].objects
    assert box.segmentation is None and box.box == pytest.approx((40, 30, 60, 50), abs=1e-4)
    assert outlined.segmentation == [[10, 8, 50, 8, 50, 40, 10, 40]] and outlined.label == 1
    assert [(found.label, found.box) for found in by_name['deep/ü.png'].objects] == [(1, (0, 0, 100, 80))]
    assert by_name['nothing.jpg'].objects == by_name['c.jpg'].objects == []


def test_yolo_class_ids_with_gaps(tmp_path):
    data = read_labels(write_yolo_folder(tmp_path, {'0': 'cat', '1': 'dog', '7': 'emu'}))
    assert data.classes == ['cat', 'dog', 'emu']
    (tmp_path / 'labels/val/c.txt').write_text('7 0.5 0.5 0.1 0.1')
    assert read_labels(tmp_path).splits['val'][0].objects[0].label == 2
    (tmp_path / 'labels/val/c.txt').write_text('5 0.5 0.5 0.1 0.1')
    with pytest.raises(UserError, match='holds the class id 5, which data.yaml does not name'):
        read_labels(tmp_path)
    (tmp_path / 'labels/val/c.txt').write_text('0 0.5 nan 0.1 0.1')
    with pytest.raises(UserError, match=r'labels/val/c\.txt: .*finite'):
        read_labels(tmp_path)


def test_yolo_of_roboflow_with_key_points(tmp_path):
    """Images and labels below each split, '../' in data.yaml, and key points behind the box."""
    picture(tmp_path / 'train/images/a.jpg')
    write(tmp_path / 'train/labels/a.txt', '0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 2')
    write(tmp_path / 'data.yaml', 'train: ../train/images\nnc: 1\nnames: [bird]\nkpt_shape: [2, 3]\n')
    data = read_labels(tmp_path)
    assert data.splits['train'][0].objects == [Object(0, (25, 20, 75, 60))]
    assert dict(data.losses) == {'sets of key points, of which the boxes are read': 1}


VOC = """<annotation><folder>x</folder><filename>{name}</filename><size><width>100</width><height>80</height>
<depth>3</depth></size>{objects}</annotation>"""
VOC_OBJECT = """<object><name>{name}</name><pose>Unspecified</pose><difficult>0</difficult><bndbox><xmin>{box[0]}</xmin>
<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>{more}</object>"""


def test_voc(tmp_path):
    polygon = '<polygon><x1>1</x1><y1>1</y1><x2>11</x2><y2>1</y2><x3>11</x3><y3>21</y3></polygon>'
    objects = VOC_OBJECT.format(name='tree', box=(1, 1, 10, 20), more='')
    objects += VOC_OBJECT.format(name='Ölbaum', box=(1, 1, 10.5, 20), more=polygon)
    write(tmp_path / 'Annotations/one two.xml', VOC.format(name='one two.jpg', objects=objects))
    write(tmp_path / 'Annotations/deep/é.xml', VOC.format(name='C:\\photos\\é.jpg', objects=''))
    for name in ('one two.jpg', 'one two.tif', 'deep/é.jpg', 'alone.png'):
        picture(tmp_path / 'JPEGImages' / name)
    write(tmp_path / 'ImageSets/Main/train.txt', 'one two\n')
    write(tmp_path / 'ImageSets/Main/val.txt', 'é\n')
    data = read_labels(tmp_path, images=tmp_path / 'JPEGImages')
    assert data.classes == ['tree', 'Ölbaum'] and sorted(data.splits) == ['train', 'val']
    assert data.splits['train'][0].name == 'one two.jpg' and data.splits['val'][0].name == 'deep/é.jpg'
    assert data.splits['train'][0].objects == [
        Object(0, (0, 0, 10, 20)),
        Object(1, (0, 0, 10.5, 20), [[0, 0, 10, 0, 10, 20]]),
    ]
    assert data.splits['val'][0].objects == []
    assert dict(data.losses) == {'images without an XML file: left out': 2}
    (tmp_path / 'Annotations/deep/é.xml').write_text('<annotation><object>')
    with pytest.raises(UserError, match=r'é\.xml is not valid XML'):
        read_labels(tmp_path)


def test_labelme(tmp_path):
    def shape(label, kind, points, group=None):
        return dict(label=label, points=points, group_id=group, shape_type=kind, flags={})

    shapes = [
        shape('cell', 'polygon', [[10, 10], [20, 10], [20, 20]], 1),
        shape('cell', 'rectangle', [[50, 40], [30, 20]]),
        shape('cell', 'polygon', [[60, 60], [70, 60], [70, 75]], 1),
        shape('mark', 'point', [[1, 1]]),
    ]
    common = dict(version='5.5.0', imageData=None, imageHeight=80, imageWidth=100)
    picture(tmp_path / 'images/a b.jpg')
    picture(tmp_path / 'images/deep/ñ.jpg')
    write(tmp_path / 'labels/a b.json', dict(common, imagePath='..\\images\\a b.jpg', shapes=shapes))
    write(tmp_path / 'labels/deep/ñ.json', dict(common, imagePath='../../images/deep/ñ.jpg', shapes=[]))
    data = read_labels(tmp_path)
    assert data.classes == ['cell'] and [image.name for image in data.images] == ['images/a b.jpg', 'images/deep/ñ.jpg']
    outlined, box = data.images[0].objects
    assert outlined == Object(0, (10, 10, 70, 75), [[10, 10, 20, 10, 20, 20], [60, 60, 70, 60, 70, 75]])
    assert box == Object(0, (30, 20, 50, 40)), 'a rectangle has no outline'
    assert dict(data.losses) == {'shapes of the type point: left out': 1}
    assert data.images[1].objects == []


def test_csv(tmp_path):
    picture(tmp_path / 'deep/ä b.jpg')
    picture(tmp_path / 'empty.png')
    table = 'image_path,xmin,ymin,xmax,ymax,label\n"deep/ä b.jpg",1,2,30.5,40,"Tree, dead"\n'
    write(tmp_path / 'boxes.csv', '\ufeff' + table + 'empty.png,,,,,\n')
    data = read_labels(tmp_path)
    assert data.classes == ['Tree, dead'] and list(data.splits) == ['all']
    assert [image.objects for image in data.images] == [[Object(0, (1, 2, 30.5, 40))], []]
    for row in ('deep/ä b.jpg,1,2,1,40,x', 'deep/ä b.jpg,1,2,nan,40,x', 'deep/ä b.jpg,1,2,30,40,'):
        write(tmp_path / 'boxes.csv', table + row + '\n')
        with pytest.raises(UserError, match=r'boxes\.csv, line 3: .* is not a box'):
            read_labels(tmp_path)
    write(tmp_path / 'boxes.csv', table + 'gone.jpg,1,2,30,40,x\n')
    with pytest.raises(UserError, match=r'gone\.jpg, which does not exist'):
        read_labels(tmp_path / 'boxes.csv')


def label_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_label_maps(tmp_path):
    labels = np.zeros((80, 100), np.uint8)
    labels[10:20] = 1
    labels[0] = 255
    for name in ('train/a b', 'val/deep/ö'):
        picture(tmp_path / f'images/{name}.jpg')
        label_png(tmp_path / f'masks/{name}.png', labels)
    picture(tmp_path / 'images/train/unlabelled.jpg')
    write(tmp_path / 'classes.txt', 'ground\nroad\n')
    data = read_labels(tmp_path)
    assert data.kind == 'segmentation' and data.classes == ['ground', 'road']
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        'train': ['a b.jpg'],
        'val': ['deep/ö.jpg'],
    }
    assert dict(data.losses) == {'images without a label map: left out': 1}
    for wrong, sentence in (
        (np.full((80, 100), 2, np.uint8), r'holds the values \[2\], but the 2 classes have the indices 0 to 1'),
        (np.zeros((80, 100, 3), np.uint8), r'is a colour image \(RGB\)'),
        (np.zeros((80, 99), np.uint8), 'is 80x99, its image 80x100'),
    ):
        label_png(tmp_path / 'masks/train/a b.png', wrong)
        with pytest.raises(UserError, match=sentence):
            read_labels(tmp_path)


def test_turned_photographs(tmp_path):
    """A camera held upright writes the size of the sensor and an orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (100, 80)).save(tmp_path / 'a.jpg', exif=exif)
    write(tmp_path / 'boxes.csv', 'image,xmin,ymin,xmax,ymax,label\na.jpg,1,2,3,4,x\n')
    assert read_labels(tmp_path).images[0].size == (100, 80)


def test_formats_are_found(tmp_path):
    assert find_format(write_coco_folder(tmp_path / 'coco')) == 'coco'
    assert find_format(write_yolo_folder(tmp_path / 'yolo')) == 'yolo'
    with pytest.raises(UserError, match='holds no labels of a known format'):
        find_format(tmp_path / 'yolo/images')
    (tmp_path / 'data.yaml').write_text('names: [a]')
    with pytest.raises(UserError, match=r'several formats \(yolo, coco\): give --format yolo\|coco'):
        find_format(tmp_path)
    with pytest.raises(UserError, match='there is no file or folder'):
        read_labels(tmp_path / 'gone')
