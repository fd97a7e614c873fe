"""Every shipped config: it resolves, agrees with its arch and its recipe, builds, trains and predicts."""

import copy
import csv
import functools
import importlib
import itertools
import os
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from torch import nn

from convnext_dense import ConvNeXt, ConvNeXtRoadmap
from convnext_dense.complexity import build_on_meta
from convnext_dense.models.roadmap import STEPS
from convnext_dense.run.machine import fit_to_machine

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
LEAVES = sorted(str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').glob('[!_]*/*.py'))
# Those of the ConvNeXts after 2022 have tests of their own.
LATER = ('convnext_v2/', 'dinov3/', 'eupe/', 'clip/', 'modern_heads/')
LEAVES = [leaf for leaf in LEAVES if not leaf.startswith(LATER)]
# Architectures of the paper that it trains on ImageNet only.
ROADMAP = [leaf for leaf in LEAVES if leaf.startswith('roadmap/')]
OWN = ROADMAP + [leaf for leaf in LEAVES if leaf.startswith('isotropic/')]
RECIPES = [leaf for leaf in LEAVES if 'digits' not in leaf and leaf not in OWN]
# Tables of the parameters that have no weight decay: norms of patches, blocks, mergings and outputs, position tables.
SWIN_ZERO_DECAY = {6: 2 + 4 * 12 + 2 * 3 + 2 * 4 + 12, 18: 2 + 4 * 24 + 2 * 3 + 2 * 4 + 24}
# Without a row in recipes.csv: no config was ever released, or the recipe is ours.
WITHOUT_ROW = {
    'cascade_mask_rcnn/swin_b_in22k_3x_coco': 'cascade_mask_rcnn/swin_b_3x_coco',
    'cascade_mask_rcnn/swin_l_in22k_3x_coco': 'cascade_mask_rcnn/swin_b_3x_coco',
    'cascade_mask_rcnn/r50_3x_coco': 'cascade_mask_rcnn/swin_t_3x_coco',
    'cascade_mask_rcnn/x101_32x4d_3x_coco': 'cascade_mask_rcnn/swin_t_3x_coco',
    'cascade_mask_rcnn/x101_64x4d_3x_coco': 'cascade_mask_rcnn/swin_t_3x_coco',
    'mask_rcnn/swin_t_1x_coco': 'mask_rcnn/swin_t_3x_coco',
    'mask_rcnn/convnext_t_1x_coco': 'mask_rcnn/convnext_t_3x_coco',
    'mask_rcnn/convnext_s_3x_coco': 'cascade_mask_rcnn/convnext_s_3x_coco',
    'mask_rcnn/convnext_b_3x_coco': 'cascade_mask_rcnn/convnext_b_3x_coco',
}
MODEL_BASES = ('mask_rcnn', 'cascade_mask_rcnn', 'upernet', 'upernet_640')


def read(table: str) -> list[dict[str, str]]:
    with (ROOT / 'tests' / 'reference' / table).open(newline='') as file:
        return list(csv.DictReader(file))


ROWS = read('recipes.csv')
CONVNEXT_ROWS = [row for row in ROWS if 'convnext' in row['config']]
SWIN_ROWS = [row for row in ROWS if 'swin' in row['config']]
with (ROOT / 'tests' / 'reference' / 'swin_authors.yml').open() as file:
    SWIN_AUTHORS = yaml.safe_load(file)


def load(path: str) -> Config:
    cfg = copy.deepcopy(_read_config(path, os.environ.get('CONVNEXT_DENSE_DATA')))
    scope = cfg.get('default_scope') or cfg.model.get('_scope_')
    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    return cfg


@functools.cache
def _read_config(path: str, data: str | None) -> Config:
    return Config.fromfile(ROOT / 'configs' / path)


def in_channels_of(cfg: Config) -> list[int]:
    in_channels = (cfg.model.neck if 'neck' in cfg.model else cfg.model.decode_head).in_channels
    return [in_channels] if isinstance(in_channels, int) else in_channels


@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if leaf not in ROADMAP or 'inverting' in leaf])
def test_leaf(leaf):
    cfg = load(leaf)
    assert cfg.custom_imports.imports == ['convnext_dense'] and not cfg.custom_imports.allow_failed_imports
    model = build_on_meta(cfg)
    with torch.no_grad():
        features = model.backbone(torch.empty(1, 3, 64, 64, device='meta'))
        channels = [feature.shape[1] for feature in features]
        assert in_channels_of(cfg) == channels
        if 'auxiliary_head' in cfg.model and 'neck' in cfg.model:
            channels = [feature.shape[1] for feature in model.neck(features)]
            assert cfg.model.decode_head.in_channels == channels
    if 'auxiliary_head' in cfg.model:
        assert cfg.model.auxiliary_head.in_channels == channels[cfg.model.auxiliary_head.in_index]
    assert cfg.optim_wrapper.constructor == (
        'ConvNeXtLayerDecayConstructor' if 'convnext' in leaf or leaf in OWN else 'DefaultOptimWrapperConstructor'
    )
    if 'digits' not in leaf:
        lines = (ROOT / 'configs' / leaf).read_text().splitlines()
        assert 5 <= len(lines) <= 15
        assert lines[0].startswith('# Ours, not in the paper') or leaf not in OWN
        assert leaf in ROADMAP or cfg.model.backbone.init_cfg.type == 'Pretrained'


def test_roadmap_has_a_config_for_every_network():
    """Of regime T; they set nothing but the step and what the neck has to know of it."""
    steps = []
    for leaf in ROADMAP:
        settings = runpy.run_path(str(ROOT / 'configs' / leaf))
        (step,) = settings['model']['backbone'].values()
        with torch.device('meta'):
            channels = ConvNeXtRoadmap(step).channels
        assert leaf == f'roadmap/mask_rcnn_{step}_3x_coco.py'
        assert settings['model'] == dict(backbone=dict(step=step), neck=dict(in_channels=list(channels)))
        assert {name for name in settings if not name.startswith('__')} == {'_base_', 'model'}
        lines = (ROOT / 'configs' / leaf).read_text().splitlines()
        assert 5 <= len(lines) <= 15 and lines[0].startswith('# Ours, not in the paper')
        steps.append(step)
    assert sorted(steps) == sorted(set(STEPS) - {'resnet_enhanced'})

    cfg = load('roadmap/mask_rcnn_resnet_3x_coco.py')
    assert cfg.model.backbone == dict(type='ConvNeXtRoadmap', regime='T', step='resnet', drop_path_rate=0.4)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_type='layer_wise', decay_rate=1.0)
    assert cfg.sync_bn == 'torch' and fit_to_machine(cfg, 'pytorch') and cfg.sync_bn is None


@pytest.mark.parametrize(
    'size, arch, width, drop_path, rate, depth',
    [('s', 'small', 384, 0.1, 0.8, 18), ('b', 'base', 768, 0.2, 0.8, 18), ('l', 'large', 1024, 0.5, 0.9, 36)],
)
@pytest.mark.parametrize('method', ['mask_rcnn_{}_3x_coco', 'upernet_{}_512_160k_ade20k'])
def test_isotropic_recipe(method, size, arch, width, drop_path, rate, depth):
    cfg = load(f'isotropic/{method.format(size)}.py')
    weights = f'https://dl.fbaipublicfiles.com/convnext/convnext_iso_{arch}_1k_224_ema.pth'
    assert cfg.model.backbone == dict(
        type='ConvNeXtIsotropic',
        arch=arch,
        drop_path_rate=drop_path,
        init_cfg=dict(type='Pretrained', checkpoint=weights),
    )
    assert (cfg.model.neck.type, cfg.model.neck.in_channels) == ('SimpleFeaturePyramid', width)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_type='layer_wise', decay_rate=rate)
    model = build_on_meta(cfg)
    fit_to_machine(cfg, 'none')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    assert len(groups) == 2 * (depth + 2), 'the stem, every block, and the rest'
    assert min(group['lr'] for group in groups) == pytest.approx(1e-4 * rate ** (depth + 1))


def test_no_six_lines_stand_in_two_leaves():
    runs = {}
    for leaf in RECIPES:
        lines = (ROOT / 'configs' / leaf).read_text().splitlines()
        for i in range(len(lines) - 5):
            runs.setdefault((leaf.split('/')[0], *lines[i : i + 6]), []).append(leaf)
    assert [leaves for leaves in runs.values() if len(leaves) > 1] == []


@pytest.mark.parametrize('name', MODEL_BASES)
def test_model_base_builds_on_its_own(name):
    assert isinstance(build_on_meta(load(f'_base_/{name}.py')).backbone, ConvNeXt)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['config'])
def test_official_recipe(row):
    """Every figure of the configuration files of the authors of ConvNeXt and Swin, held in recipes.csv."""
    cfg = load(row['config'] + '.py')
    backbone = cfg.model.backbone
    depths, dims = ([int(n) for n in row[key].split('-')] for key in ('depths', 'dims'))
    assert backbone.drop_path_rate == float(row['drop_path_rate'])
    wrapper = cfg.optim_wrapper
    if row in CONVNEXT_ROWS:
        built = build_on_meta(cfg).backbone
        assert backbone.arch == row['arch'] and (built.depths, built.channels) == (tuple(depths), tuple(dims))
        assert backbone.layer_scale_init_value == float(row['layer_scale_init'])
        assert backbone.init_cfg == dict(
            type='Pretrained', checkpoint=f'https://dl.fbaipublicfiles.com/convnext/{row["pretrain"]}.pth'
        )
        assert wrapper.paramwise_cfg == dict(decay_type=row['decay_type'], decay_rate=float(row['decay_rate']))
    else:
        # Heads of 32 channels.
        assert (backbone.depths, backbone.embed_dims, backbone.num_heads) == (depths, dims[0], [n // 32 for n in dims])
        assert row['pretrain'] in backbone.init_cfg.checkpoint
        assert ('22k' in row['pretrain']) == ('22k' in backbone.init_cfg.checkpoint)
        assert row['decay_type'] == 'none (0 decay on position tables and norms)'
    assert wrapper.type == dict(fp16='AmpOptimWrapper', fp32='OptimWrapper')[row['amp']]
    assert wrapper.optimizer == dict(
        type='AdamW',
        lr=float(row['lr']),
        weight_decay=float(row['weight_decay']),
        betas=tuple(float(beta) for beta in row['betas'].split('-')),
    )
    assert cfg.train_dataloader.batch_size == int(row['batch_per_gpu'])
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=int(row['batch_per_gpu']) * int(row['gpus']))
    if cfg.default_scope == 'mmdet':
        assert row['schedule'] == f'{cfg.train_cfg.max_epochs} epochs'
        warm_up, steps = cfg.param_scheduler
        assert row['warmup'] == 'linear 500 it from 0.001x'
        assert warm_up == dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
        assert steps == dict(
            type='MultiStepLR',
            by_epoch=True,
            begin=0,
            end=36,
            gamma=0.1,
            milestones=[int(n) for n in row['milestones'].split('-')],
        )
    else:
        assert row['schedule'] == '160k iterations' and cfg.train_cfg.max_iters == 160000
        assert row['milestones'] == 'poly power 1.0 to 0 from iteration 0 (warm-up multiplied on)'
        assert row['warmup'] == 'linear 1500 it from 1e-6x'
        warm_up, poly = cfg.param_scheduler
        assert warm_up == dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)
        assert poly == dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000)
        side = int(row['crop'])
        slide = {}
        if row['test_mode'] == 'slide':
            slide = dict(crop_size=(side, side), stride=(int(row['slide_stride']),) * 2)
        assert cfg.model.test_cfg == dict(mode=row['test_mode'], **slide)
        assert cfg.model.data_preprocessor.size == (side, side)
        resize, crop = (
            next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == kind)
            for kind in ('RandomResize', 'RandomCrop')
        )
        assert resize.scale == (4 * side, side) and resize.ratio_range == (0.5, 2.0)
        assert crop.crop_size == (side, side) and crop.cat_max_ratio == 0.75
        for split in ('val', 'test'):
            (resize,) = (step for step in cfg[f'{split}_dataloader'].dataset.pipeline if step.type == 'Resize')
            assert resize.scale == (4 * side, side) and resize.keep_ratio
        assert cfg.model.auxiliary_head.in_channels == int(row['aux_in_channels'])
        assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 150


def plain(value):
    """Lists and dicts out of a config, without the arguments that say only where images are read from."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ('backend_args', '_scope_')}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize('row', [row for row in SWIN_ROWS if row['crop'] != '640'], ids=lambda row: row['config'])
def test_swin_is_as_its_authors_released_it(row):
    """Also what recipes.csv does not hold: augmentation, normalisation of images, test settings."""
    cfg = load(row['config'] + '.py')
    detection = cfg.default_scope == 'mmdet'
    theirs = SWIN_AUTHORS['detection' if detection else 'segmentation']
    assert cfg.optim_wrapper.type == dict(fp16='AmpOptimWrapper', fp32='OptimWrapper')[theirs['precision']]
    assert plain(cfg.optim_wrapper.optimizer) == theirs['optimizer']
    assert cfg.optim_wrapper.get('clip_grad') is theirs['clip_grad'] is None
    assert cfg.train_dataloader.batch_size == theirs['batch_size']
    assert {
        key: value for key, value in plain(cfg.model.data_preprocessor).items() if key in theirs['image']
    } == theirs['image']
    assert plain(cfg.train_dataloader.dataset.pipeline) == theirs['train']
    (resize,) = (step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize')
    assert list(resize.scale) == theirs['test_scale'] and resize.keep_ratio
    warm_up, steps = cfg.param_scheduler
    assert warm_up == theirs['warm_up']
    if detection:
        assert plain(cfg.model.test_cfg) == dict(rpn=theirs['test_rpn'], rcnn=theirs['test_rcnn'])
        assert steps.milestones == theirs['schedules'][cfg.train_cfg.max_epochs] and steps.gamma == 0.1
    else:
        assert cfg.model.test_cfg == theirs['test_mode'] and steps == theirs['steps']
        assert cfg.train_cfg.max_iters == theirs['iterations']


@pytest.mark.parametrize('row', SWIN_ROWS, ids=lambda row: row['config'])
def test_weight_decay_of_swin(row):
    """No weight decay on position tables and norms, as by the authors' rule; one learning rate."""
    cfg = load(row['config'] + '.py')
    model = build_on_meta(cfg)
    fit_to_machine(cfg, 'none')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {id(param): name for name, param in model.named_parameters()}
    decay = {names[id(param)]: group['weight_decay'] for group in groups for param in group['params']}
    assert len(decay) == sum(len(group['params']) for group in groups) == len(names)
    without = {name for name in decay if any(key in name for key in SWIN_AUTHORS['zero_decay'])}
    assert decay == {name: 0.0 if name in without else float(row['weight_decay']) for name in names.values()}
    assert len(without) == SWIN_ZERO_DECAY[cfg.model.backbone.depths[2]]
    assert {name.split('.')[0] for name in without} == {'backbone'}
    assert {group['lr'] for group in groups} == {float(row['lr'])}


@pytest.mark.slow
def test_weights_of_swin_load_as_released(tmp_path):
    """Backbone weights in the layout of Swin's authors give the features of timm's Swin, which is another code."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    # Twice the usual size: where a map is one window, timm's does not shift it, a detector's does.
    theirs = timm.create_model('swin_tiny_patch4_window7_224', img_size=448).eval()
    state = {}
    for name, value in theirs.state_dict().items():
        nn.init.normal_(value, std=0.05)
        # timm merges patches at the start of a stage, the authors at the end of the one before.
        name = re.sub(r'layers\.(\d)\.downsample', lambda match: f'layers.{int(match[1]) - 1}.downsample', name)
        state[name.replace('head.fc', 'head')] = value
    torch.save(dict(model=state), tmp_path / 'swin.pth')
    cfg = load('mask_rcnn/swin_t_3x_coco.py').model.backbone
    cfg.init_cfg.checkpoint = str(tmp_path / 'swin.pth')
    backbone = MODELS.build(cfg)
    backbone.init_weights()
    backbone.double().eval()
    theirs.double()
    image = torch.randn(1, 3, 448, 448, dtype=torch.float64)
    with torch.no_grad():
        found = backbone(image)
        wanted = theirs.forward_intermediates(image, intermediates_only=True)
    assert len(found) == len(wanted) == 4
    for ours, feature in zip(found, wanted):
        # Output norms are new to the file.
        feature = nn.functional.layer_norm(feature.permute(0, 2, 3, 1), feature.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, feature, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name, like', WITHOUT_ROW.items())
def test_recipe_without_a_row(name, like):
    """Equal to the recipe that it is derived from, but for what its first lines say."""
    ours, base = (load(f'{leaf}.py') for leaf in (name, like))
    assert ours.train_dataloader == base.train_dataloader and ours.test_dataloader == base.test_dataloader
    assert ours.optim_wrapper == base.optim_wrapper and ours.auto_scale_lr == base.auto_scale_lr
    if '_1x_' in name:
        assert ours.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
        assert ours.param_scheduler == [
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
            dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
        ]
        assert ours.model.backbone.drop_path_rate == (0.1 if 'swin' in name else 0.2)
        ours.model.backbone.drop_path_rate = base.model.backbone.drop_path_rate
        assert ours.model == base.model
        return
    assert ours.train_cfg == base.train_cfg and ours.param_scheduler == base.param_scheduler
    if 'swin_b' in name or 'convnext' in name:
        assert {**ours.model.backbone, 'init_cfg': None} == {**base.model.backbone, 'init_cfg': None}
    elif 'swin_l' in name:
        assert ours.model.backbone.drop_path_rate == 0.3


@pytest.mark.parametrize('name', ['r50', 'x101_32x4d', 'x101_64x4d'])
def test_resnets_are_those_of_mmdet(name):
    """Size, frozen layers and frozen statistics as in mmdet's own configs of these backbones."""
    folder = Path(importlib.import_module('mmdet').__file__).parent / '.mim' / 'configs' / 'cascade_rcnn'
    theirs = Config.fromfile(folder / f'cascade-mask-rcnn_{name.replace("_", "-")}_fpn_1x_coco.py').model.backbone
    ours = load(f'cascade_mask_rcnn/{name}_3x_coco.py').model.backbone
    assert ours.type == f'mmdet.{theirs.type}' and ours.init_cfg == theirs.init_cfg
    for key in ('depth', 'groups', 'base_width', 'frozen_stages', 'norm_eval', 'style'):
        assert ours.get(key) == theirs.get(key), key


@pytest.mark.parametrize('row', CONVNEXT_ROWS, ids=lambda row: row['config'])
def test_layer_decay_of_the_recipe(row):
    """Every parameter in exactly one of few groups; as many layers as the official file sets."""
    cfg = load(row['config'] + '.py')
    model = build_on_meta(cfg)
    assert model.backbone.num_layers == int(row['num_layers'])
    fit_to_machine(cfg, 'none')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    # Two groups, with and without weight decay, for each layer: 0 to num_layers + 1, or stem, four stages and heads.
    assert (
        len(groups)
        == {'layer_wise': {6: 16, 12: 28}, 'stage_wise': {6: 12, 12: 12}}[row['decay_type']][int(row['num_layers'])]
    )
    params = [id(param) for group in groups for param in group['params']]
    assert sorted(params) == sorted(map(id, model.parameters()))
    lowest = float(row['lr']) * float(row['decay_rate']) ** (int(row['num_layers']) + 1)
    assert min(group['lr'] for group in groups) == pytest.approx(lowest)
    assert max(group['lr'] for group in groups) == float(row['lr'])


# The small ones, and one of each kind, in every run of the tests; CI runs all.
@pytest.mark.parametrize(
    'leaf',
    [
        leaf
        if re.search('_t_3x|_t_512|r50|isotropic/upernet_s|rcnn_inverting', leaf)
        else pytest.param(leaf, marks=pytest.mark.slow)
        for leaf in RECIPES + OWN
    ],
)
def test_trains_and_predicts(leaf, official_names, monkeypatch):
    """Loss, backward and predictions at reduced size; every parameter gets a gradient, so DDP finds none unused."""
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(official_names))
    # Truncation is what makes the initialisation of 350 M parameters slow.
    monkeypatch.setattr(nn.init, 'trunc_normal_', lambda weight, std: nn.init.normal_(weight, std=std))
    cfg = load(leaf)
    fit_to_machine(cfg, 'none')
    detector = cfg.default_scope == 'mmdet'
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    resize = dict(type='Resize', scale=(96, 96))
    labels = dict(with_bbox=True, with_mask=True) if detector else dict(reduce_zero_label=True)
    train.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', **labels),
        resize,
        train.pipeline[-1],
    ]
    test.pipeline = [resize if step.type == 'Resize' else step for step in test.pipeline]
    if detector:
        rcnn = cfg.model.train_cfg.rcnn
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = 100
        # Random weights give every box and class about the same score.
        cfg.model.test_cfg.rpn.max_per_img = 20
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    else:
        cfg.model.data_preprocessor.size = (96, 96)
    if 'drop_path_rate' in cfg.model.backbone:
        cfg.model.backbone.drop_path_rate = 0.0
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()

    def batch(dataset, number: int, training: bool) -> dict:
        data = DATASETS.build(dataset)
        return model.data_preprocessor(pseudo_collate([data[i] for i in range(number)]), training=training)

    loss, log = model.parse_losses(model(**batch(train, 2, True), mode='loss'))
    assert torch.isfinite(loss)
    loss.backward()
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    assert [name for name, param in trained.items() if param.grad is None] == []
    # mmdet's ResNets train without their stem and first stage.
    assert (len(trained) < len(list(model.parameters()))) == ('ResNe' in cfg.model.backbone.type)

    model.eval()
    with torch.no_grad():
        (sample,) = model(**batch(test, 1, False), mode='predict')
    if detector:
        found = sample.pred_instances
        assert len(found) == 5 and found.masks.shape == (5, *sample.ori_shape) and found.labels.max() < 80
    else:
        assert sample.pred_sem_seg.data.shape == (1, *sample.ori_shape) and sample.pred_sem_seg.data.max() < 150


def test_every_recipe_has_a_reference():
    assert set(RECIPES) == {f'{name}.py' for name in itertools.chain((row['config'] for row in ROWS), WITHOUT_ROW)}


def test_cascade_heads_are_the_official_ones():
    heads = load('cascade_mask_rcnn/convnext_b_3x_coco.py').model.roi_head.bbox_head
    assert [head.bbox_coder.target_stds for head in heads] == [
        [0.1, 0.1, 0.2, 0.2],
        [0.05, 0.05, 0.1, 0.1],
        [0.033, 0.033, 0.067, 0.067],
    ]
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
