"""Configs of the ConvNeXts after 2022: V2, DINOv3, EUPE and CLIP. They resolve, build, and count as published."""

import importlib
from pathlib import Path

import pytest
from helpers import ROOT
from mmengine.config import Config

from convnext_dense.complexity import build_on_meta, count
from convnext_dense.weights.known import known_weights

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
FOLDERS = ('convnext_v2', 'dinov3', 'eupe', 'clip')
LEAVES = [
    str(leaf.relative_to(ROOT / 'configs')) for folder in FOLDERS for leaf in (ROOT / 'configs' / folder).glob('*')
]


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
