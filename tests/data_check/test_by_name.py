"""Labels that follow names: data set and metric against mmdet's own on a file in the order of the classes."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from pycocotools import mask as coco_mask

from convnext_dense.data_check.check import check_data, follow_names
from convnext_dense.data_check.loading_errors import LoadingError, name_paths_in_errors
from convnext_dense.data_check.report import report
from convnext_dense.errors import UserError

pytest.importorskip('mmdet')
NAMES = tuple('0123456789')
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]


@pytest.fixture
def annotations(digits):
    return json.loads((digits / 'digits/coco/annotations/instances_val2017.json').read_text())


@pytest.fixture
def config(digits, tmp_path, monkeypatch):
    """Write an annotation file and give a config that reads it; the type is mmdet's own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def write(content) -> Config:
        path = tmp_path / 'a.json'
        path.write_text(json.dumps(content))
        folder = digits / 'digits/coco/val2017'
        dataset = dict(
            type='CocoDataset',
            ann_file=str(path),
            data_prefix=dict(img=str(folder)),
            metainfo=dict(classes=NAMES),
            pipeline=PIPELINE,
        )
        return Config(
            dict(
                default_scope='mmdet',
                model=dict(),
                val_dataloader=dict(batch_size=1, num_workers=0, dataset=dataset),
                val_evaluator=dict(type='CocoMetric', ann_file=str(path), metric=['bbox', 'segm']),
            )
        )

    return write


def build(cfg: Config):
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        return registry.build(copy.deepcopy(cfg.val_dataloader.dataset))


def labels(dataset) -> list:
    return [(tuple(i['bbox']), i['bbox_label']) for sample in dataset for i in samples(sample)]


def samples(sample) -> list:
    instances = sample['data_samples'].gt_instances
    boxes = instances.bboxes.tensor if hasattr(instances.bboxes, 'tensor') else instances.bboxes
    return [dict(bbox=box.tolist(), bbox_label=int(label)) for box, label in zip(boxes, instances.labels)]


def permuted(content: dict, seed: int = 0) -> dict:
    """The same annotations with categories in another order, under other ids."""
    changed = copy.deepcopy(content)
    ids = {category['id']: 100 - 7 * category['id'] for category in changed['categories']}
    for category in changed['categories']:
        category['id'] = ids[category['id']]
    for annotation in changed['annotations']:
        annotation['category_id'] = ids[annotation['category_id']]
    random.Random(seed).shuffle(changed['categories'])
    return changed


def perfect_score(cfg: Config, content: dict) -> dict:
    """Evaluate detections that are the annotations, with labels by name."""
    with METRICS.switch_scope_and_registry('mmdet') as registry:
        metric = registry.build(copy.deepcopy(cfg.val_evaluator))
    metric.dataset_meta = dict(classes=NAMES)
    names = {category['id']: category['name'] for category in content['categories']}
    for image in content['images']:
        found = [a for a in content['annotations'] if a['image_id'] == image['id']]
        boxes = torch.tensor([a['bbox'] for a in found], dtype=torch.float)
        boxes[:, 2:] += boxes[:, :2]
        size = (image['height'], image['width'])
        masks = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(a['segmentation'], *size))) for a in found]
        sample = dict(
            img_id=image['id'],
            ori_shape=size,
            pred_instances=dict(
                bboxes=boxes,
                scores=torch.ones(len(found)),
                labels=torch.tensor([NAMES.index(names[a['category_id']]) for a in found]),
                masks=torch.from_numpy(np.stack(masks)).bool(),
            ),
        )
        metric.process({}, [sample])
    return metric.evaluate(len(content['images']))


def test_labels_and_scores_follow_names(annotations, config):
    """mmdet permutes labels where the categories stand in another order than the classes; ours never does."""
    expected = labels(build(config(annotations)))
    assert len(expected) == len(annotations['annotations'])
    assert perfect_score(config(annotations), annotations)['coco/bbox_mAP'] == 1
    other = permuted(annotations)
    assert labels(build(config(other))) != expected
    assert perfect_score(config(other), other)['coco/bbox_mAP'] < 0.5
    for content in (annotations, other):
        cfg = config(content)
        follow_names(cfg, ['val'])
        assert labels(build(cfg)) == expected
        scores = perfect_score(cfg, content)
        assert scores['coco/bbox_mAP'] == 1 and scores['coco/segm_mAP'] == 1
        follow_names(cfg, ['val'])  # a dumped config comes by once more
        assert cfg.val_dataloader.dataset.type == 'CocoDatasetByName'
        assert cfg.custom_imports.imports == ['convnext_dense.data_check.by_name']


def test_another_order_is_announced(annotations, config):
    cfg = config(permuted(annotations))
    follow_names(cfg, ['val'])
    (finding,) = check_data(cfg, ['val'])
    assert not finding.fatal and 'categories stand in another order (' in finding.what
    assert 'labels follow the names' in finding.what


def test_values_that_coco_defines(annotations, config):
    """Without area, iscrowd and the id 0, what is trained on and scored stays the same."""
    expected = labels(build(config(annotations)))
    for number, annotation in enumerate(annotations['annotations']):
        del annotation['area'], annotation['iscrowd']
        annotation['id'] = number
    cfg = config(annotations)
    follow_names(cfg, ['val'])
    findings = check_data(cfg, ['val'])
    assert not any(finding.fatal for finding in findings) and len(findings) == 3
    dataset = build(cfg)
    assert labels(dataset) == expected
    assert perfect_score(cfg, annotations)['coco/segm_mAP'] == 1
    masks = dataset[0]['data_samples'].gt_instances.masks.masks
    api = dataset.COCOAPI(cfg.val_dataloader.dataset.ann_file)
    areas = [annotation['area'] for annotation in api.imgToAnns[annotations['images'][0]['id']]]
    assert areas == masks.sum((1, 2)).tolist()


def test_boxes_and_masks_that_are_completed(annotations, config):
    first, second = annotations['annotations'][:2]
    annotations['annotations'][2:] = []
    first['bbox'] = [180, -20, 30, 60]  # in an image of 192 x 192
    second['segmentation'] = []
    dataset = build(followed := config(annotations))
    follow_names(followed, ['val'])
    dataset = build(followed)
    api = dataset.COCOAPI(followed.val_dataloader.dataset.ann_file)
    assert api.anns[first['id']]['bbox'] == [180, 0, 12, 40]
    x, y, width, height = second['bbox']
    completed = api.anns[second['id']]
    assert completed['iscrowd'] == 1
    assert completed['segmentation'] == [[x, y, x + width, y, x + width, y + height, x, y + height]]


def test_findings_are_remembered_until_a_file_changes(annotations, config, digits, monkeypatch):
    cfg = config(permuted(annotations))
    follow_names(cfg, ['val'])
    first = check_data(cfg, ['val'])
    monkeypatch.setattr('convnext_dense.data_check.check.check_coco', None)  # not called again
    assert check_data(cfg, ['val']) == first
    with pytest.raises(TypeError):
        check_data(cfg, ['val'], use_cache=False)
    with pytest.raises(TypeError):
        check_data(cfg, ['val'], decode=True)  # another setting
    config(annotations)
    with pytest.raises(TypeError):
        check_data(cfg, ['val'])


def test_cache_that_cannot_be_written(annotations, config, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    cfg = config(annotations)
    follow_names(cfg, ['val'])
    assert check_data(cfg, ['val']) == []


def test_report(annotations, config, tmp_path, capsys):
    annotations['annotations'][3]['bbox'][0] = float('nan')
    for annotation in annotations['annotations']:
        del annotation['area']
    cfg = config(annotations)
    follow_names(cfg, ['val'])
    with pytest.raises(UserError) as stop:
        report(check_data(cfg, ['val']), tmp_path / 'work')
    id_ = annotations['annotations'][3]['id']
    assert f'a.json: annotation {id_}, bbox [nan, ' in str(stop.value) and '\n' not in str(stop.value)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('data check: ')]
    assert f"{len(annotations['annotations']) - 1} x 'area' is missing: it is taken from" in line
    listed = (tmp_path / 'work/data_check.txt').read_text()
    assert all(f'annotation {a["id"]}\n' in listed + '\n' for a in annotations['annotations'] if a['id'] != id_)
    report([], tmp_path / 'work')
    assert not (tmp_path / 'work/data_check.txt').exists()


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_while_loading_name_the_file(workers, annotations, config, tmp_path):
    from mmengine.runner import Runner

    annotations['images'][0]['file_name'] = 'gone.jpg'
    cfg = config(annotations)
    cfg.val_dataloader.update(
        num_workers=workers, sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='pseudo_collate')
    )

    class FakeRunner:
        train_dataloader = test_dataloader = None
        val_dataloader = copy.deepcopy(cfg.val_dataloader)

    name_paths_in_errors(FakeRunner)
    with DATASETS.switch_scope_and_registry('mmdet'):
        loader = Runner.build_dataloader(FakeRunner.val_dataloader)
    with pytest.raises(LoadingError, match=r'val2017/gone\.jpg: FileNotFoundError: '):
        next(iter(loader))
    assert loader.dataset[1]['data_samples'].img_id == annotations['images'][1]['id']
    assert cfg.val_dataloader.dataset.pipeline == PIPELINE
