"""Every shipped config: it resolves, agrees with its arch and its recipe, and builds."""
import csv
import importlib

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from torch import nn

from convnext_dense import ConvNeXt
from convnext_dense.launch import fit_to_machine

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
LEAVES = sorted(str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').glob('[!_]*/*.py'))
MODEL_BASES = ('mask_rcnn', 'cascade_mask_rcnn', 'upernet', 'upernet_640')


def read(table: str) -> list[dict[str, str]]:
    with (ROOT / 'tests' / 'reference' / table).open(newline='') as file:
        return list(csv.DictReader(file))


def load(path) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / path)
    scope = cfg.get('default_scope') or cfg.model.get('_scope_')
    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def in_channels_of(cfg: Config) -> list[int]:
    return (cfg.model.neck if 'neck' in cfg.model else cfg.model.decode_head).in_channels


@pytest.mark.parametrize('leaf', LEAVES)
def test_leaf(leaf):
    cfg = load(leaf)
    assert cfg.custom_imports.imports == ['convnext_dense'] and not cfg.custom_imports.allow_failed_imports
    backbone = build(cfg).backbone
    assert in_channels_of(cfg) == list(backbone.channels)
    if 'auxiliary_head' in cfg.model:
        assert cfg.model.auxiliary_head.in_channels == backbone.channels[cfg.model.auxiliary_head.in_index]
    assert cfg.optim_wrapper.constructor == 'ConvNeXtLayerDecayConstructor'
    if 'digits' not in leaf:
        assert 5 <= len((ROOT / 'configs' / leaf).read_text().splitlines()) <= 15
        assert cfg.model.backbone.init_cfg.checkpoint.startswith('https://dl.fbaipublicfiles.com/convnext/')


@pytest.mark.parametrize('name', MODEL_BASES)
def test_model_base_builds_on_its_own(name):
    assert isinstance(build(load(f'_base_/{name}.py')).backbone, ConvNeXt)


# Published parameters in millions (paper Table 3, official model zoo), segmentors with their auxiliary head.
@pytest.mark.parametrize('row', read('recipes.csv'), ids=lambda row: row['config'])
def test_published_parameter_count(row):
    name = f'ConvNeXt-{row["config"].split("/convnext_")[1].split("_")[0].upper()}'
    pretrain = 'in22k' if '22k' in row['config'] else 'in1k'
    published, = (other['params_M'] for other in read('published_results.csv')
                  if other['method'].startswith(row['method']) and other['backbone'] == name
                  and other['pretrain'] == pretrain)
    assert round(sum(p.numel() for p in build(load(row['config'] + '.py')).parameters()) / 1e6) == int(published)


@pytest.mark.parametrize('row', read('recipes.csv'), ids=lambda row: row['config'])
def test_official_recipe(row):
    """Every figure of the official configuration files, held in tests/reference/recipes.csv."""
    cfg = load(row['config'] + '.py')
    backbone = cfg.model.backbone
    assert backbone.arch == row['arch']
    depths, dims = ([int(n) for n in row[key].split('-')] for key in ('depths', 'dims'))
    assert build(cfg).backbone.depths == tuple(depths) and build(cfg).backbone.channels == tuple(dims)
    assert (backbone.drop_path_rate, backbone.layer_scale_init_value) == \
        (float(row['drop_path_rate']), float(row['layer_scale_init']))
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'https://dl.fbaipublicfiles.com/convnext/{row["pretrain"]}.pth')
    wrapper = cfg.optim_wrapper
    assert wrapper.type == dict(fp16='AmpOptimWrapper', fp32='OptimWrapper')[row['amp']]
    assert wrapper.optimizer == dict(type='AdamW', lr=float(row['lr']), weight_decay=float(row['weight_decay']),
                                     betas=tuple(float(beta) for beta in row['betas'].split('-')))
    assert wrapper.paramwise_cfg == dict(decay_type=row['decay_type'], decay_rate=float(row['decay_rate']))
    assert cfg.train_dataloader.batch_size == int(row['batch_per_gpu'])
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=int(row['batch_per_gpu']) * int(row['gpus']))
    if cfg.default_scope == 'mmdet':
        assert row['schedule'] == f'{cfg.train_cfg.max_epochs} epochs'
        warm_up, steps = cfg.param_scheduler
        assert row['warmup'] == 'linear 500 it from 0.001x'
        assert warm_up == dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
        assert steps == dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, gamma=0.1,
                             milestones=[int(n) for n in row['milestones'].split('-')])
    else:
        assert row['schedule'] == '160k iterations' and cfg.train_cfg.max_iters == 160000
        assert row['milestones'] == 'poly power 1.0 to 0 from iteration 0 (warm-up multiplied on)'
        assert row['warmup'] == 'linear 1500 it from 1e-6x'
        warm_up, poly = cfg.param_scheduler
        assert warm_up == dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)
        assert poly == dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000)
        side, stride = int(row['crop']), int(row['slide_stride'])
        assert cfg.model.test_cfg == dict(mode=row['test_mode'], crop_size=(side, side), stride=(stride, stride))
        assert cfg.model.data_preprocessor.size == (side, side)
        resize, crop = (next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == kind)
                        for kind in ('RandomResize', 'RandomCrop'))
        assert resize.scale == (4 * side, side) and resize.ratio_range == (0.5, 2.0)
        assert crop.crop_size == (side, side) and crop.cat_max_ratio == 0.75
        for split in ('val', 'test'):
            resize, = (step for step in cfg[f'{split}_dataloader'].dataset.pipeline if step.type == 'Resize')
            assert resize.scale == (4 * side, side) and resize.keep_ratio
        assert cfg.model.auxiliary_head.in_channels == int(row['aux_in_channels'])
        assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 150


@pytest.mark.parametrize('row', read('recipes.csv'), ids=lambda row: row['config'])
def test_layer_decay_of_the_recipe(row):
    """Every parameter in exactly one of few groups; as many layers as the official file sets."""
    cfg = load(row['config'] + '.py')
    model = build(cfg)
    assert model.backbone.num_layers == int(row['num_layers'])
    fit_to_machine(cfg, 'none')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    # Two groups, with and without weight decay, for each layer: 0 to num_layers + 1, or stem, four stages and heads.
    assert len(groups) == {'layer_wise': {6: 16, 12: 28}, 'stage_wise': {6: 12, 12: 12}}[row['decay_type']][
        int(row['num_layers'])]
    params = [id(param) for group in groups for param in group['params']]
    assert sorted(params) == sorted(map(id, model.parameters()))
    lowest = float(row['lr']) * float(row['decay_rate'])**(int(row['num_layers']) + 1)
    assert min(group['lr'] for group in groups) == pytest.approx(lowest)
    assert max(group['lr'] for group in groups) == float(row['lr'])


@pytest.mark.parametrize('row', read('recipes.csv'), ids=lambda row: row['config'])
def test_one_training_step(row, official_names, monkeypatch):
    """Loss and backward at reduced size; every parameter gets a gradient, so DDP finds none unused."""
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(official_names))
    # Truncation is what makes the initialisation of 350 M parameters slow.
    monkeypatch.setattr(nn.init, 'trunc_normal_', lambda weight, std: nn.init.normal_(weight, std=std))
    cfg = load(row['config'] + '.py')
    fit_to_machine(cfg, 'none')
    detector = cfg.default_scope == 'mmdet'
    dataset = cfg.train_dataloader.dataset
    resize = dict(type='Resize', scale=(96, 96))
    if detector:
        dataset.pipeline = [dict(type='LoadImageFromFile'),
                            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                            resize, dict(type='PackDetInputs')]
        rcnn = cfg.model.train_cfg.rcnn
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = 100
    else:
        dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
                            resize, dict(type='PackSegInputs')]
        cfg.model.data_preprocessor.size = (96, 96)
    cfg.model.backbone.drop_path_rate = 0.
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    batch = model.data_preprocessor(pseudo_collate([DATASETS.build(dataset)[i] for i in range(2)]), training=True)
    loss, log = model.parse_losses(model(**batch, mode='loss'))
    assert torch.isfinite(loss)
    loss.backward()
    without = [name for name, param in model.named_parameters() if param.grad is None]
    assert without == []


def test_nothing_but_the_recipes_and_the_demo():
    assert {leaf for leaf in LEAVES if 'digits' not in leaf} == {row['config'] + '.py' for row in read('recipes.csv')}


def test_cascade_heads_are_the_official_ones():
    heads = load('cascade_mask_rcnn/convnext_b_3x_coco.py').model.roi_head.bbox_head
    assert [head.bbox_coder.target_stds for head in heads] == [
        [0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    for head in heads:
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
        assert head.norm_cfg.type == 'SyncBN' and head.reg_decoded_bbox and not head.reg_class_agnostic
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)


def test_data_folder_from_the_environment(monkeypatch):
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', '/mnt/sets')
    coco, ade = load('mask_rcnn/convnext_t_3x_coco.py'), load('upernet/convnext_t_512_160k_ade20k.py')
    for split in ('train', 'val', 'test'):
        assert coco[f'{split}_dataloader'].dataset.data_root == '/mnt/sets/coco/'
        assert ade[f'{split}_dataloader'].dataset.data_root == '/mnt/sets/ade/ADEChallengeData2016'
    assert coco.test_evaluator.ann_file == '/mnt/sets/coco/annotations/instances_val2017.json'
