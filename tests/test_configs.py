"""Every shipped config: it resolves, agrees with its arch and its recipe, and builds."""
import importlib

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from convnext_dense import ConvNeXt
from convnext_dense.launch import fit_to_machine

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
LEAVES = sorted(str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').glob('[!_]*/*.py'))
MODEL_BASES = ('mask_rcnn', 'cascade_mask_rcnn', 'upernet')


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
    backbone = ConvNeXt(**{k: v for k, v in cfg.model.backbone.items() if k not in ('type', 'init_cfg', '_scope_')})
    assert in_channels_of(cfg) == list(backbone.channels)
    if 'auxiliary_head' in cfg.model:
        assert cfg.model.auxiliary_head.in_channels == backbone.channels[cfg.model.auxiliary_head.in_index]
    assert cfg.optim_wrapper.constructor == 'ConvNeXtLayerDecayConstructor'
    assert build(cfg).backbone.depths == backbone.depths
    if 'digits' not in leaf:
        assert 5 <= len((ROOT / 'configs' / leaf).read_text().splitlines()) <= 15
        assert cfg.model.backbone.init_cfg.checkpoint.startswith('https://dl.fbaipublicfiles.com/convnext/')


@pytest.mark.parametrize('name', MODEL_BASES)
def test_model_base_builds_on_its_own(name):
    assert isinstance(build(load(f'_base_/{name}.py')).backbone, ConvNeXt)


@pytest.mark.parametrize('leaf, millions', [  # published, paper Table 3 and official model zoo
    ('mask_rcnn/convnext_t_3x_coco.py', 48), ('cascade_mask_rcnn/convnext_b_3x_coco.py', 146),
    ('upernet/convnext_t_512_160k_ade20k.py', 60)])
def test_published_parameter_count(leaf, millions):
    assert round(sum(p.numel() for p in build(load(leaf)).parameters()) / 1e6) == millions


@pytest.mark.parametrize('leaf, arch, drop_path, weights, lr, decay, groups', [
    ('mask_rcnn/convnext_t_3x_coco.py', 'tiny', .4, 'convnext_tiny_1k_224', 1e-4, ('layer_wise', .95), 16),
    ('cascade_mask_rcnn/convnext_b_3x_coco.py', 'base', .7, 'convnext_base_1k_224', 2e-4, ('layer_wise', .8), 28),
    ('upernet/convnext_t_512_160k_ade20k.py', 'tiny', .4, 'convnext_tiny_1k_224', 1e-4, ('stage_wise', .9), 12)])
def test_official_recipe(leaf, arch, drop_path, weights, lr, decay, groups):
    cfg = load(leaf)
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.drop_path_rate, backbone.layer_scale_init_value) == (arch, drop_path, 1.0)
    assert backbone.init_cfg == dict(type='Pretrained',
                                     checkpoint=f'https://dl.fbaipublicfiles.com/convnext/{weights}.pth')
    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'AmpOptimWrapper' and wrapper.loss_scale == 'dynamic'
    assert wrapper.optimizer == dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
    assert (wrapper.paramwise_cfg.decay_type, wrapper.paramwise_cfg.decay_rate) == decay
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_dataloader.batch_size == 2
    if cfg.default_scope == 'mmdet':
        assert cfg.train_cfg.max_epochs == 36
        warm_up, steps = cfg.param_scheduler
        assert warm_up == dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
        assert steps == dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1)
    else:
        assert cfg.train_cfg.max_iters == 160000
        warm_up, poly = cfg.param_scheduler
        assert warm_up == dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)
        assert poly == dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000)
        assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
        assert cfg.model.data_preprocessor.size == (512, 512)
        assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 150
    fit_to_machine(cfg, 'none')
    optim = build_optim_wrapper(build(cfg), cfg.optim_wrapper)
    assert len(optim.optimizer.param_groups) == groups


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
