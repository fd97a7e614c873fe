"""Faults in a COCO file: every key of every record removed, of another type or not finite; ids, boxes and masks."""

import copy
import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from convnext_dense.data_check.coco import CocoRules, check_coco, run_lengths
from convnext_dense.data_check.coco_records import coco_records

RULES = CocoRules(
    classes=('cat', 'dog'),
    masks=True,
    annotations_optional=False,
    by_name=True,
    drops_empty=True,
    min_size=32,
    key='train_dataloader.dataset',
)
MALFORMED = {'text': 'x', 'list': [], 'object': {}, 'null': None, 'bool': True}
NOT_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


def content() -> dict:
    """A faultless file of three images and four objects, one of them a crowd."""
    crowd = np.zeros((48, 64), np.uint8)
    crowd[10:20, 5:30] = 1
    encoded = coco_mask.encode(np.asfortranarray(crowd))
    objects = [
        dict(id=1, image_id=1, category_id=1, bbox=[10, 10, 20, 10], segmentation=[[10, 10, 30, 10, 30, 20, 10, 20]]),
        dict(id=2, image_id=2, category_id=2, bbox=[0, 0, 64, 48], segmentation=[[0, 0, 64, 0, 64, 48, 0, 48]]),
        dict(id=3, image_id=3, category_id=1, bbox=[1.5, 2.5, 9.25, 7], segmentation=[[1.5, 2.5, 10.75, 2.5, 3, 9.5]]),
        dict(
            id=4,
            image_id=3,
            category_id=2,
            bbox=[5, 10, 25, 10],
            segmentation=dict(size=[48, 64], counts=encoded['counts'].decode()),
        ),
    ]
    for annotation in objects:
        annotation.update(area=annotation['bbox'][2] * annotation['bbox'][3], iscrowd=int(annotation['id'] == 4))
    return dict(
        info=dict(description='[{"images": []}]'),  # brackets and names inside a text
        images=[dict(id=id_, file_name=f'{id_}.jpg', height=48, width=64) for id_ in (1, 2, 3)],
        annotations=objects,
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    )


@pytest.fixture
def check(tmp_path):
    """Check a file of this content; gives (fatal sentences, harmless findings)."""

    def run(data, **changes):
        path = tmp_path / 'a.json'
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        findings, _ = check_coco(path, RULES.__class__(**{**RULES.__dict__, **changes}))
        assert all(finding.source == str(path) for finding in findings)
        return [f.sentence() for f in findings if f.fatal], [f for f in findings if not f.fatal]

    return run


def test_faultless_file(check):
    assert check(content()) == ([], [])
    assert check(content(), masks=False, by_name=False) == ([], [])


def mutations() -> dict[str, tuple]:
    """``{name: (section, index of the record, key, value)}``; a value of ... removes the key."""
    found = {}
    for section in ('images', 'annotations', 'categories'):
        record = content()[section][0]
        for key, value in record.items():
            found[f'{section}.{key} removed'] = (section, key, ...)
            others = dict(MALFORMED)
            others['number'] = 3.5
            if isinstance(value, (int, float)):
                others |= NOT_FINITE | {'negative': -1}
            for name, other in others.items():
                if type(other) is not type(value) or name == 'list':
                    found[f'{section}.{key} {name}'] = (section, key, other)
            if isinstance(value, list) and isinstance(value[0], (int, float)):
                for position in range(len(value)):
                    for name, other in (MALFORMED | NOT_FINITE).items():
                        changed = list(value)
                        changed[position] = other
                        found[f'{section}.{key}.{position} {name}'] = (section, key, changed)
                found[f'{section}.{key} short'] = (section, key, value[:-1])
            if key == 'segmentation':
                for position in range(len(value[0])):
                    for name, other in (MALFORMED | NOT_FINITE).items():
                        changed = list(value[0])
                        changed[position] = other
                        found[f'{section}.{key}.0.{position} {name}'] = (section, key, [changed])
                found[f'{section}.{key} odd'] = (section, key, [value[0][:-1]])
                found[f'{section}.{key} of two corners'] = (section, key, [value[0][:4]])
                found[f'{section}.{key} no polygon'] = (section, key, [[]])
        found[f'{section} record of another type'] = (section, None, 7)
    for key in ('size', 'counts'):
        found[f'run lengths {key} removed'] = ('run lengths', key, ...)
        for name, other in MALFORMED.items():
            found[f'run lengths {key} {name}'] = ('run lengths', key, other)
    return found


# What is no fault: COCO defines a value, or the file means something.
HARMLESS = {
    'annotations.area removed': "'area' is missing",
    'annotations.iscrowd removed': "'iscrowd' is missing",
}
FINE = {'annotations.area number', 'annotations.iscrowd bool'}


@pytest.mark.parametrize('name', mutations())
def test_every_key_of_every_record(name, check):
    section, key, value = mutations()[name]
    data = content()
    record = data['annotations'][3]['segmentation'] if section == 'run lengths' else data[section][0]
    if key is None:
        data[section][0] = value
    elif value is ...:
        del record[key]
    else:
        record[key] = value
    fatal, harmless = check(data)
    if name in FINE:
        assert (fatal, harmless) == ([], [])
    elif name in HARMLESS:
        assert fatal == []
        assert [(f.what.split(':')[0], f.records) for f in harmless] == [(HARMLESS[name], ('annotation 1',))]
        stops, _ = check(data, by_name=False)
        assert len(stops) == 1 and 'annotation 1' in stops[0]
    else:
        assert fatal, name
        named = ('annotation 1', 'annotation 4', 'image 1', 'category 1', 'entry 1', "'cat'")
        assert any(text in fatal[0] for text in named), fatal


@pytest.mark.parametrize('section', ['images', 'annotations', 'categories'])
@pytest.mark.parametrize('value', [..., [], {}, None, 'x'], ids=str)
def test_sections(section, value, check):
    data = content()
    data[section] = value
    if value is ...:
        del data[section]
    fatal, _ = check(data)
    assert any(repr(section) in sentence for sentence in fatal)


@pytest.mark.parametrize('length', range(0, 1000, 37))
def test_files_cut_anywhere(length, check):
    text = json.dumps(content(), indent=1)
    assert length < len(text)
    (sentence,), _ = check(text[:length])
    assert 'the file is not valid JSON, or cut off: ' in sentence


@pytest.mark.parametrize(
    'text', ['[]', '7', 'null', '{"images": [{"id": 1},]}', '{} x', '{1: 2}', '{"images" []}', '\ufeff{}']
)
def test_other_texts(text, check):
    fatal, _ = check(text)
    assert 'not valid JSON' in fatal[-1] or 'no object' in fatal[-1]


def test_reader_agrees_with_json(tmp_path):
    path = tmp_path / 'a.json'
    for indent in (None, 2):
        data = content()
        path.write_text(json.dumps(data, indent=indent))
        records = list(coco_records(path))
        for section in ('images', 'annotations', 'categories'):
            assert [record for name, record in records if name == section] == data[section]


@pytest.mark.parametrize(
    'changes, sentence',
    [
        ({'images.1.id': 1}, 'image 1: the id of an image is used twice'),
        ({'categories.1.id': 1}, 'category 1: the id of a category is used twice'),
        ({'categories.1.name': 'cat'}, "category 2, name 'cat': the name of a category is used twice"),
        ({'annotations.1.id': 1}, 'annotation 1 (and 1 more): the id is used twice'),
        ({'annotations.1.image_id': 9}, 'annotation 2, 9: the image_id is not in images'),
        ({'annotations.1.category_id': 9}, 'annotation 2, 9: the category_id is not in categories'),
        ({'annotations.0.id': 2**70}, "'id' is no integer"),
        ({'categories.0.name': 'cats'}, "the class 'cat' of metainfo.classes is no category of the file, which has "),
        ({'categories.0.name': 'cats'}, "did you mean 'cats'?"),
        (
            {'annotations.0.bbox': [70, 10, 5, 5]},
            'annotation 1, bbox [70.0, 10.0, 5.0, 5.0] in an image of 64 x 48: the box lies outside its image',
        ),
        ({'annotations.0.bbox': [10, 10, 20, -3]}, "annotation 1, [10.0, 10.0, 20.0, -3.0]: 'bbox' has a negative"),
        ({'annotations.0.bbox': [30, 10, 60, 10]}, '1 of 4 boxes stick out of their images'),
        ({'annotations.0.segmentation': [[0, 0, 1e9, 0, 9, 9]]}, 'the polygons lie outside their image'),
        ({'annotations.0.segmentation': [[70, 9, 80, 9, 80, 20]]}, 'the polygons lie outside their image'),
        ({'annotations.3.segmentation.size': [64, 48]}, 'annotation 4, [64, 48] instead of [48, 64]'),
        ({'annotations.3.segmentation.size': [48, 65]}, 'do not sum up to height x width'),
        ({'annotations.3.segmentation.counts': [3072, -5, 5]}, 'do not sum up to height x width'),
        ({'annotations.3.segmentation.counts': 'abc~'}, 'is cut off or no text of pycocotools'),
        ({'annotations.3.segmentation.counts': [3000]}, 'do not sum up to height x width'),
    ],
)
def test_records_that_do_not_fit(changes, sentence, check):
    data = content()
    for place, value in changes.items():
        *path, last = place.split('.')
        owner = data
        for key in path:
            owner = owner[int(key) if key.isdigit() else key]
        owner[last] = value
    fatal, _ = check(data)
    assert any(sentence in text for text in fatal), fatal


def test_harmless_records(check):
    data = content()
    data['annotations'][0]['id'] = 0
    data['annotations'][1]['bbox'] = [0, 0, 64.9, 48.9]  # COCO's own boxes stick out so far
    data['annotations'][2]['area'] = 0
    data['annotations'][2]['segmentation'].append([1, 2, 3, 4])
    data['categories'].reverse()
    fatal, harmless = check(data)
    assert fatal == []
    assert {f.what: f.records for f in harmless} == {
        "'area' is 0: the object is not trained on": ('annotation 3',),
        'a polygon has fewer than three corners: that polygon is dropped': ('annotation 3',),
        'categories stand in another order (dog, cat) than metainfo.classes (cat, dog): labels follow the names': (),
        'pycocotools ignores an object with the id 0: it gets a new id': ('annotation 0',),
    }
    assert len(check(data, by_name=False)[0]) == 3  # mmdet's own data set does none of this


def many(count: int) -> dict:
    """A faultless file of ``count`` objects."""
    data = content()
    first = data['annotations'][0]
    data['annotations'] = [dict(copy.deepcopy(first), id=number + 1) for number in range(count)]
    return data


@pytest.mark.parametrize('masks', [..., [], [[1, 2, 3, 4]]], ids=str)
def test_masks_that_are_missing(masks, check):
    data = many(200)
    for number in range(2):
        data['annotations'][number]['segmentation'] = masks
        if masks is ...:
            del data['annotations'][number]['segmentation']
    fatal, (finding,) = check(data)
    assert fatal == [] and len(finding.records) == 2 and 'becomes a crowd region' in finding.what
    for annotation in data['annotations'][:3]:
        annotation.pop('segmentation', None)
    (sentence,), _ = check(data)
    assert "annotation 1, segmentation None (and 2 more): 3 of 200 annotations have no 'segmentation'" in sentence
    assert 'with_mask=False in train_dataloader.dataset.pipeline' in sentence
    assert check(data, masks=False) == ([], [])


def test_single_box_that_sticks_out_is_clipped(check):
    data = many(20)
    data['annotations'][5]['bbox'] = [60, 40, 10, 5]
    fatal, (finding,) = check(data)
    assert fatal == []
    assert finding.records == ('annotation 6, bbox [60.0, 40.0, 10.0, 5.0] in an image of 64 x 48',)


def test_filter_that_drops_every_image(check):
    (sentence,), _ = check(content(), min_size=49)
    assert 'of 3, 3 are smaller than min_size=49 and 0 have no object' in sentence
    assert 'change train_dataloader.dataset.filter_cfg' in sentence
    data = content()
    data['categories'].append(dict(id=3, name='cow'))
    (sentence,), _ = check(data, classes=('cow',))
    assert 'of 3, 0 are smaller than min_size=32 and 3 have no object of the classes cow' in sentence
    (sentence,), _ = check(data, classes=('cow',), drops_empty=False)
    assert 'no annotation can be used for the classes cow' in sentence


def test_test_images_need_no_annotations(check):
    data = content()
    del data['annotations']
    assert check(data, annotations_optional=True) == ([], [])


def test_run_lengths_agree_with_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 60, 2)
        mask = np.asfortranarray((rng.random((height, width)) < rng.random()).astype(np.uint8))
        lengths = run_lengths(coco_mask.encode(mask)['counts'].decode())
        flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
        np.testing.assert_array_equal(flat.reshape(width, height).T, mask)
