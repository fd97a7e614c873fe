"""What a config says: every head of every recipe, names of classes, and what dataloaders and heads refuse."""

import copy

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from convnext_dense.data_check.config import check_config, model_parts
from convnext_dense.data_check.splits import splits_of
from convnext_dense.toolkits import check_toolkit

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for folder in ('mask_rcnn', 'cascade_mask_rcnn', 'upernet')
    for path in (ROOT / 'configs' / folder).glob('convnext_*.py')
)
MASK_RCNN, UPERNET = 'configs/mask_rcnn/convnext_digits.py', 'configs/upernet/convnext_digits.py'


def read(path: str) -> Config:
    cfg = Config.fromfile(ROOT / path)
    check_toolkit(cfg.default_scope)
    return cfg


def check(cfg: Config, names=('train', 'val')) -> list[str]:
    splits = [split for name in names for split in splits_of(cfg, name)[0]]
    return [finding.sentence() for finding in check_config(cfg, splits)]


class ReadsAtOnce(BaseDataset):
    """A user's data set whose constructor takes what it needs and nothing else."""

    def __init__(self, ann_file):
        super().__init__(ann_file)


class OfTorch(torch.utils.data.Dataset):
    """A user's data set of another kind."""


@pytest.mark.parametrize('kind', [ReadsAtOnce, OfTorch])
def test_data_sets_of_other_kinds_are_left_to_the_user(kind):
    cfg = read(UPERNET)
    cfg.train_dataloader = dict(dataset=dict(type=kind, ann_file='no_such_file.json'))
    splits, (finding,) = splits_of(cfg, 'train')
    assert splits == [] and not finding.fatal
    assert finding.what == f'{kind.__name__} cannot be built without reading its data, so these were not checked'


def test_an_unknown_data_set_is_fatal():
    cfg = read(UPERNET)
    cfg.train_dataloader.dataset.type = 'NoSuchDataset'
    splits, (finding,) = splits_of(cfg, 'train')
    assert splits == [] and finding.fatal and 'NoSuchDataset is not in the registry of data sets' in finding.what


def test_all_recipes_pass():
    """The 13 official recipes, the demos and the longer list of the model zoo."""
    assert len(RECIPES) >= 15
    for recipe in RECIPES:
        cfg = read(recipe)
        assert check(cfg) == [] and check(cfg, ('test',)) == [], recipe


@pytest.mark.parametrize('recipe', [MASK_RCNN, UPERNET, 'configs/cascade_mask_rcnn/convnext_t_3x_coco.py'])
def test_every_head(recipe):
    """``num_classes`` of each head, wrong or left to its default."""
    cfg = read(recipe)
    heads = [key for key, _, part in model_parts(cfg) if 'num_classes' in part]
    assert len(heads) == {MASK_RCNN: 2, UPERNET: 2}.get(recipe, 4)
    for head in heads:
        for wrong in (1, 7, 81, ...):
            changed = copy.deepcopy(cfg)
            part = changed
            for key in head.split('.'):
                part = part[int(key) if key.isdigit() else key]
            if wrong is ...:
                del part['num_classes']
                if 'cascade' in recipe or recipe == UPERNET:
                    continue  # 80 is the default, and mmseg's heads have none
            else:
                part['num_classes'] = wrong
            (sentence,) = check(changed)
            assert sentence.startswith(f'{head}.num_classes: {80 if wrong is ... else wrong}')
            count = len(splits_of(cfg, 'train')[0][0].classes)
            assert f'set {head}.num_classes={count} or train_dataloader.dataset.metainfo.classes' in sentence


@pytest.mark.parametrize(
    'split, classes, sentence',
    [
        (
            'train',
            'balloon',
            "'balloon' is one text, whose letters would be the classes; write the comma: ('balloon',)",
        ),
        ('train', ('0', '0', *'23456789'), '0 is named twice; give every class its own name'),
        ('val', tuple('1023456789'), '10 (1, 0, 2, 3, 4, ...) are not the classes of train_dataloader.dataset'),
        ('val', tuple('012345678x'), 'are not the classes of train_dataloader.dataset'),
        ('val', (), 'there is no class; name the classes'),
    ],
)
def test_names_of_classes(split, classes, sentence):
    cfg = read(MASK_RCNN)
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    sentences = check(cfg)
    assert sentences[0].startswith(f'{split}_dataloader.dataset.metainfo.classes: ') and sentence in sentences[0]


@pytest.mark.parametrize('scope, mean', [(MASK_RCNN, [1, 2]), (MASK_RCNN, [1] * 4), (UPERNET, [1] * 4)])
def test_image_statistics(scope, mean):
    cfg = read(scope)
    cfg.model.data_preprocessor.mean = mean
    (sentence,) = check(cfg)
    assert f'mean has {len(mean)} values and std 3, but images have 3 channels' in sentence
    cfg.model.data_preprocessor.std = mean
    assert len(check(cfg)) == 1
    if scope == UPERNET:
        cfg.model.backbone.in_channels = 4
        assert check(cfg) == []


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_workers_that_cannot_persist(split):
    cfg = read(UPERNET)
    cfg[f'{split}_dataloader'].num_workers = 0
    (sentence,) = check(cfg, (split,))
    assert f'set {split}_dataloader.persistent_workers=False' in sentence
    cfg[f'{split}_dataloader'].persistent_workers = False
    assert check(cfg, (split,)) == []


def test_one_image_in_a_batch():
    cfg = read(UPERNET)
    cfg.train_dataloader.batch_size = 1
    (sentence,) = check(cfg)
    assert 'model.decode_head pools to one pixel, where BN cannot train on one image' in sentence
    cfg.model.decode_head.norm_cfg = dict(type='GN', num_groups=8)
    assert check(cfg) == []


def test_one_class_of_a_segmentor():
    cfg = read(UPERNET)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('road',), palette=[[0, 0, 0]])
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 1
    sentences = check(cfg)
    assert len(sentences) == 2 and all('one class leaves a segmentor nothing to tell apart' in s for s in sentences)


def test_masks_without_a_mask_head():
    cfg = read(MASK_RCNN)
    cfg.model.roi_head.mask_head = None
    (sentence,) = check(cfg)
    assert sentence == (
        "val_evaluator.metric: 'segm' needs masks, and model.roi_head has no mask_head; set val_evaluator.metric=bbox"
    )


def test_classes_that_a_data_set_does_not_know():
    cfg = read('configs/upernet/convnext_t_512_160k_ade20k.py')
    cfg.train_dataloader.dataset.metainfo = dict(classes=('wall', 'unicorn'))
    splits, (finding,) = splits_of(cfg, 'train')
    assert splits == [] and finding.fatal
    assert finding.sentence().startswith('train_dataloader.dataset: the data set cannot be built: new classes ')
