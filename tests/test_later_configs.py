"""Configs of the ConvNeXts after 2022, and of later heads. They resolve, build, train, and count as published."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from torch import nn

from convnext_dense.complexity import build_on_meta, count
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.swap.diff import ABSENT, Difference, differences
from convnext_dense.swap.swap import swap_config
from convnext_dense.weights.known import known_weights

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
FOLDERS = ('convnext_v2', 'dinov3', 'eupe', 'clip')
LEAVES = [
    str(leaf.relative_to(ROOT / 'configs')) for folder in FOLDERS for leaf in (ROOT / 'configs' / folder).glob('*.py')
]
DINO, MASK2FORMER = 'modern_heads/dino_4scale_t_12e_coco.py', 'modern_heads/mask2former_t_512_160k_ade20k.py'
MODERN_HEADS = (DINO, MASK2FORMER)
NARROW = (8, 16, 24, 32)  # channels of the stages where a training is to take a second
SHRINK = 8  # what sizes of images are divided by there


def load(leaf: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / leaf)
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=True)
    return cfg


@pytest.mark.parametrize('leaf', sorted(LEAVES))
def test_leaf(leaf):
    """Short, with its source on the first line; it builds, and its inputs are normalised as its weights want."""
    lines = (ROOT / 'configs' / leaf).read_text().splitlines()
    assert 5 <= len(lines) <= 15 and lines[0].startswith(('# Ours', '# Published: ', "# mmdetection's"))
    cfg = load(leaf)
    source = cfg.model.backbone.init_cfg.checkpoint
    known = known_weights(source)
    preprocessor = cfg.model.data_preprocessor
    assert known.statistics.agrees(preprocessor.mean, preprocessor.std) and preprocessor.bgr_to_rgb
    model = build_on_meta(cfg)
    backbone = model.backbone
    if known.arguments:
        assert backbone.contradictions(known.arguments) == {} and backbone.arch == known.arguments['arch']
    else:
        assert backbone.arch in source and cfg.model.backbone.use_grn
    channels = [backbone.channels[i] for i in backbone.out_indices]
    if 'linear' in leaf:
        trained = [name for name, param in model.named_parameters() if param.requires_grad]
        assert {name.split('.')[0] for name in trained if not name.startswith('backbone.norm3')} == {
            'neck',
            'decode_head',
        }
        assert cfg.model.neck.in_channels == cfg.model.decode_head.in_channels == channels[0]
        return
    consumer = cfg.model.neck if 'mask_rcnn' in leaf else cfg.model.decode_head
    assert consumer.in_channels == channels
    if 'upernet' in leaf:
        assert cfg.model.auxiliary_head.in_channels == channels[2]


def test_every_size_has_its_configs():
    assert sorted(Path(leaf).stem for leaf in LEAVES if leaf.startswith('convnext_v2/')) == [
        'mask_rcnn_b_3x_coco',
        'mask_rcnn_h_3x_coco',
        'mask_rcnn_l_3x_coco',
        'upernet_b_512_160k_ade20k',
        'upernet_h_512_160k_ade20k',
        'upernet_h_in22k_640_160k_ade20k',
        'upernet_l_512_160k_ade20k',
    ]
    assert [sum(leaf.startswith(f'{folder}/') for leaf in LEAVES) for folder in FOLDERS] == [7, 12, 9, 6]
    assert sorted(str(leaf.relative_to(ROOT / 'configs')) for leaf in (ROOT / 'configs/modern_heads').glob('*.py')) == [
        *MODERN_HEADS
    ]


def test_recipe_of_mask_rcnn_v2_b():
    """The values of mmdetection's projects/ConvNeXt-V2."""
    cfg = load('convnext_v2/mask_rcnn_b_3x_coco.py')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.drop_path_rate, backbone.use_grn, backbone.layer_scale_init_value) == (
        'base',
        0.4,
        True,
        0.0,
    )
    assert cfg.train_dataloader.batch_size == 4 and cfg.auto_scale_lr.base_batch_size == 32
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_type='layer_wise', decay_rate=0.95)
    optimizer = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.optimizer == optimizer and cfg.optim_wrapper.type == 'AmpOptimWrapper'
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end, steps.milestones, cfg.train_cfg.max_epochs) == (
        0.001,
        1000,
        [27, 33],
        36,
    )
    assert cfg.model.test_cfg.rcnn.nms.type == 'soft_nms' and cfg.model.test_cfg.rpn.nms.type == 'nms'
    resize, crop = cfg.train_dataloader.dataset.pipeline[2:4]
    assert (resize.scale, resize.ratio_range, crop.crop_size) == ((1024, 1024), (0.1, 2.0), (1024, 1024))


# Published FLOPs in G and parameters in M: arXiv 2301.00808, tables 6 and 7.
@pytest.mark.parametrize(
    'leaf, flops, params',
    [
        ('mask_rcnn_b_3x_coco', 486, None),
        ('mask_rcnn_l_3x_coco', 875, None),
        ('mask_rcnn_h_3x_coco', 2525, None),
        ('upernet_b_512_160k_ade20k', 1170, 122),
        ('upernet_l_512_160k_ade20k', 1573, 235),
        ('upernet_h_512_160k_ade20k', 3272, 707),
        ('upernet_h_in22k_640_160k_ade20k', 5113, 707),
    ],
)
def test_published_counts(leaf, flops, params):
    found = count(load(f'convnext_v2/{leaf}.py'))
    assert found.total_flops / 1e9 == pytest.approx(flops, rel=0.005)
    assert params is None or round(found.total_params / 1e6) == params


@pytest.mark.parametrize('leaf', MODERN_HEADS)
def test_modern_head(leaf):
    lines = (ROOT / 'configs' / leaf).read_text().splitlines()
    assert 5 <= len(lines) <= 15 and lines[0].startswith(('# Ours', '# Published: '))
    assert 'Not trained here: what was run' in ' '.join(lines).replace(' # ', ' ')
    backbone = build_on_meta(load(leaf)).backbone
    assert (backbone.arch, backbone.out_indices) == ('tiny', (1, 2, 3) if leaf == DINO else (0, 1, 2, 3))


def flat(found: tuple[Difference, ...], place: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the new value of every difference."""
    for difference in found:
        if difference.inner:
            yield from flat(difference.inner, f'{place}{difference.key}.')
        else:
            yield place + difference.key, None if difference.after is ABSENT else difference.after


def changes_after_swap(leaf: str, source: str) -> dict[str, Any]:
    """What a config adds to the swap of another one."""
    cfg = load(leaf)
    swapped = swap_config(source, 'tiny', cfg.model.backbone.init_cfg.checkpoint).after
    found = dict(flat(differences(swapped.to_dict(), cfg.to_dict())))
    return {key: value for key, value in found.items() if key not in ('weights', 'norms')}


def test_dino_is_the_swap_with_the_settings_of_detrex(monkeypatch):
    monkeypatch.delenv('CONVNEXT_DENSE_DATA', raising=False)
    assert changes_after_swap(DINO, 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py') == {
        'custom_hooks': [dict(type='ConvNeXtLoadHook')],
        'model.backbone.drop_path_rate': 0.0,
        'model.positional_encoding.temperature': 10000,
        'model.positional_encoding.offset': -0.5,
        'model.dn_cfg.label_noise_scale': 0.2,
        'optim_wrapper.optimizer.betas': (0.9, 0.999),
        'optim_wrapper.paramwise_cfg.norm_decay_mult': 0.0,
    }
    cfg = load(DINO)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (1e-4, 1e-4)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys == dict(backbone=dict(lr_mult=0.1))
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[0].milestones) == (12, [11])
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)


def test_mask2former_is_the_swap(monkeypatch):
    monkeypatch.delenv('CONVNEXT_DENSE_DATA', raising=False)
    source = 'mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py'
    found = changes_after_swap(MASK2FORMER, source)
    keys = {key for key in found if key.startswith('optim_wrapper.paramwise_cfg.custom_keys.')}
    assert all(re.search(r'custom_keys\.backbone\.(stages|downsample_layers)', key) for key in keys)
    assert {key: value for key, value in found.items() if key not in keys} == {
        'custom_hooks': [dict(type='ConvNeXtLoadHook')],
        'model.backbone.drop_path_rate': 0.3,
    }


def test_weight_decay_of_mask2former():
    """A tenth of the rate for the backbone; no decay on any norm, nor on the embeddings of queries and levels."""
    cfg = load(MASK2FORMER)
    model = build_on_meta(cfg)
    fit_to_machine(cfg, 'none')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    settings = {id(param): (group['lr'], group['weight_decay']) for group in groups for param in group['params']}
    norms = [name for name, module in model.named_modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))]
    assert sum(name.startswith('backbone.') for name in norms) == 18 + 4 + 4
    without = {f'{name}.{part}' for name in norms for part in ('weight', 'bias')}
    embeddings = ('query_embed', 'query_feat', 'level_embed')
    for name, param in model.named_parameters():
        decay = 0.0 if name in without or any(part in name for part in embeddings) else 0.05
        assert settings[id(param)] == (pytest.approx(1e-5 if name.startswith('backbone.') else 1e-4), decay), name


def narrow(cfg: Config) -> None:
    """Give a model few channels, blocks and queries, and its pipeline images of an eighth."""
    backbone = cfg.model.backbone
    with torch.device('meta'):
        channels = MODELS.build({**backbone, 'init_cfg': None}).channels
    backbone.update(arch=dict(depths=(1, 1, 1, 1), channels=NARROW), init_cfg=None, drop_path_rate=0.0)
    new = dict(zip(channels, NARROW))
    for name in ('neck', 'decode_head', 'auxiliary_head'):
        part = cfg.model.get(name) or {}
        for key in ('in_channels', 'channels'):
            if isinstance(part.get(key), (list, tuple)):
                part[key] = [new[number] for number in part[key]]
            elif key in part:
                part[key] = new.get(part[key], 32)
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_head.fc_out_channels = 32
        cfg.model.train_cfg.rcnn.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
    if cfg.model.type == 'DINO':
        cfg.model.num_queries = 20
        cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 1
    if 'transformer_decoder' in cfg.model.get('decode_head', {}):
        head = cfg.model.decode_head
        head.num_queries = 20
        head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 1
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = shrunk(cfg.model.data_preprocessor.size)
    cfg.train_dataloader.dataset.pipeline = [shrunk_step(step) for step in cfg.train_dataloader.dataset.pipeline]


def shrunk(value: Any) -> Any:
    return value // SHRINK if isinstance(value, int) else type(value)(shrunk(item) for item in value)


def shrunk_step(step: Any) -> Any:
    if isinstance(step, (list, tuple)):
        return [shrunk_step(item) for item in step]
    if not isinstance(step, dict):
        return step
    sizes = ('scale', 'scales', 'crop_size', 'max_size')
    return {key: shrunk(value) if key in sizes else shrunk_step(value) for key, value in step.items()}


# The first size of each kind in every run of the tests; CI runs all.
FIRST = re.compile('_v2/.*_b_|dinov3/.*_t_|eupe/linear_t|clip/upernet_b_|modern_heads/')


@pytest.mark.parametrize(
    'leaf',
    [
        leaf if FIRST.search(leaf) else pytest.param(leaf, marks=pytest.mark.slow)
        for leaf in sorted([*LEAVES, *MODERN_HEADS])
    ],
)
def test_trains_two_iterations(leaf, official_names, monkeypatch):
    """With its own augmentation, losses and optimizer; every parameter that is to be trained changes, no other does."""
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(official_names))
    cfg = load(leaf)
    narrow(cfg)
    fit_to_machine(cfg, 'none')
    torch.manual_seed(0)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: param.clone() for name, param in model.named_parameters()}
    for _ in range(2):
        log = model.train_step(pseudo_collate([dataset[0], dataset[1]]), optim_wrapper)
        assert torch.isfinite(log['loss'])
    changed = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert changed == {name for name, param in model.named_parameters() if param.requires_grad}
    assert {name.split('.')[0] for name in changed} >= {'decode_head' if cfg.default_scope == 'mmseg' else 'neck'}
