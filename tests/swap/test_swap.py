"""Other people's pipelines with our backbone: what the swap changes, what it refuses, and that the result trains."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from test_layer_decay import settings

from convnext_dense import ConvNeXt, ConvNeXtSharedHead, PyramidAdapter, UserError, swap_backbone
from convnext_dense.swap.backbone import choose_stages
from convnext_dense.swap.config_tree import REMOVED, Change, with_changes
from convnext_dense.swap.diff import differences, overrides, table
from convnext_dense.swap.formatting import as_source
from convnext_dense.swap.probe import build_module
from convnext_dense.swap.recipe import read_recipe
from convnext_dense.swap.swap import swap_config
from convnext_dense.weights.find import find_backbones

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
C4 = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
DINO = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
DEEPLAB = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'
UNET = 'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py'
VIT = 'mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py'


@pytest.fixture(scope='module', autouse=True)
def no_transformers():
    """Where mmpretrain 1.2 is installed, mmdet imports it, and it imports names that transformers has no more."""

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == 'transformers':
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.distribution(name)

    hiding = types.ModuleType('importlib_metadata')
    hiding.distribution, hiding.PackageNotFoundError = distribution, importlib.metadata.PackageNotFoundError
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'importlib_metadata', hiding)
        yield


@pytest.fixture(scope='module')
def sweep():
    spec = importlib.util.spec_from_file_location('swap_sweep', ROOT / 'tools' / 'dev' / 'swap_sweep.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_a_step(sweep, cfg: Config, size: int = 128) -> dict:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return sweep.train_and_predict(cfg, size, initialised=True)[0]  # some parameters are torch.empty before


def swapped(name: str, arch='atto', **options) -> Config:
    return swap_backbone(name, arch, **options)


# --- consumers -------------------------------------------------------------------------------------------------------


def test_c4(sweep):
    model = swapped(C4).model
    assert model.backbone == dict(type='ConvNeXt', arch='atto', layer_scale_init_value=1.0, out_indices=(2,))
    assert model.rpn_head.in_channels == model.roi_head.bbox_roi_extractor.out_channels == 160
    assert model.roi_head.shared_head == dict(type='ConvNeXtSharedHead', arch='atto', layer_scale_init_value=1.0)
    assert model.roi_head.bbox_head.in_channels == 320
    received = train_a_step(sweep, swapped(C4))
    assert received['rpn_head'] == [[8, 8]] and received['roi_head.shared_head'] == [[14, 14]]
    assert received['roi_head.bbox_head'] == [[7, 7]]


def test_dc5(sweep):
    """No neck and no shared head: the box head takes the regions of the last stage, dilated."""
    cfg = swapped('mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py')
    assert cfg.model.backbone.out_indices == (3,) and cfg.model.backbone.output_stride == 16
    assert cfg.model.roi_head.bbox_head.in_channels == cfg.model.roi_head.bbox_roi_extractor.out_channels == 320
    assert cfg.model.rpn_head.in_channels == 320 and cfg.model.rpn_head.feat_channels == 2048
    assert train_a_step(sweep, cfg)['rpn_head'] == [[8, 8]]


def test_features_that_a_neck_leaves_out_are_not_made():
    """FPN with start_level=1: a norm at stride 4 would never get a gradient."""
    model = swapped(RETINANET).model
    assert model.backbone.out_indices == (1, 2, 3)
    assert model.neck.in_channels == [80, 160, 320] and model.neck.start_level == 0


def test_dilated_segmentor():
    model = swapped(DEEPLAB).model
    assert model.pretrained is None
    assert model.backbone.out_indices == (0, 2, 3) and model.backbone.output_stride == 8
    assert (model.decode_head.in_channels, model.decode_head.in_index, model.decode_head.c1_in_channels) == (320, 2, 40)
    assert (model.auxiliary_head.in_channels, model.auxiliary_head.in_index) == (160, 1)


def test_reversed_and_passed_on_channels():
    yolo = swapped('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py').model
    assert yolo.backbone.out_indices == (1, 2, 3) and yolo.neck.in_channels == [320, 160, 80]
    ssd = swapped('mmdet::ssd/ssd300_coco.py').model
    assert ssd.backbone.out_indices == (1, 3) and ssd.backbone.output_stride == 16
    assert ssd.neck.in_channels == (80, 320)
    assert ssd.neck.out_channels == ssd.bbox_head.in_channels == (80, 320, 512, 256, 256, 256)


def test_heads_of_several_features():
    model = swapped('mmseg::ocrnet/ocrnet_hr18_4xb2-80k_cityscapes-512x1024.py').model
    first, second = model.decode_head
    assert first.in_channels == second.in_channels == [40, 80, 160, 320]
    assert first.channels == 600 and second.channels == 512, 'as wide as what comes in, and of its own'
    model = swapped('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py').model
    assert model.panoptic_head.in_channels == [40, 80, 160, 320]


def test_strides_that_no_stage_has(sweep):
    """UNet's heads take strides 1 and 2."""
    cfg = swapped(UNET)
    assert cfg.model.neck == dict(
        type='PyramidAdapter',
        in_channels=[40, 80, 160, 320],
        in_strides=[4, 8, 16, 32],
        out_channels=[128, 64],
        strides=[2, 1],
    )
    assert (cfg.model.decode_head.in_index, cfg.model.auxiliary_head.in_index) == (1, 0)
    assert train_a_step(sweep, cfg, 64)['decode_head.convs'] == [[64, 64]]


def test_a_pyramid_of_one_stride_is_not_needed():
    model = swapped(VIT).model
    assert model.neck is None and 'out_indices' not in model.backbone
    assert model.decode_head.in_channels == [40, 80, 160, 320]


def test_several_backbones_and_wrapped_ones():
    lad = swapped('mmdet::lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py').model
    assert lad.backbone.type == lad.teacher_backbone.type == 'ConvNeXt' and lad.teacher_ckpt is None
    assert lad.neck.in_channels == lad.teacher_neck.in_channels == [80, 160, 320]
    swap = swap_config('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', 'atto')
    inner = swap.after.model.detector
    assert inner.neck.in_channels == [40, 80, 160, 320]
    # caffe preprocessing, two wrappers deep
    assert swap.after.model.data_preprocessor.data_preprocessor.bgr_to_rgb is True
    assert swap.after.model.data_preprocessor.data_preprocessor.mean == [123.675, 116.28, 103.53]


# --- what is run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def forward_calls():
    """Count the calls of ``forward`` that end, by type and numbers of input channels."""
    calls = Counter()

    def count(module, inputs, outputs):
        if type(module).__name__ in ('ResNet', 'FPN', 'ConvNeXt', 'ChannelMapper'):
            features = inputs[0] if isinstance(inputs[0], (list, tuple)) else [inputs[0]]
            calls[type(module).__name__, tuple(feature.shape[1] for feature in features)] += 1

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    yield calls
    handle.remove()


@pytest.mark.parametrize(
    'name, neck, old_channels, new_channels',
    [
        (RETINANET, 'FPN', (256, 512, 1024, 2048), (80, 160, 320)),
        (DINO, 'ChannelMapper', (512, 1024, 2048), (80, 160, 320)),
    ],
)
def test_necks_run_once(forward_calls, name, neck, old_channels, new_channels):
    """The old neck and the new one once each; the backbones in training and in testing."""
    swapped(name)
    assert forward_calls == {
        ('ResNet', (3,)): 2,
        (neck, old_channels): 1,
        ('ConvNeXt', (3,)): 2,
        (neck, new_channels): 1,
    }


@pytest.mark.parametrize(
    'strides, last_stage, stages_and_output_stride',
    [
        ([4, 8, 16, 32], 3, ((0, 1, 2, 3), 32)),
        ([32], 3, ((3,), 32)),
        ([8, 16, 32], 3, ((1, 2, 3), 32)),
        ([16], 3, ((3,), 16)),
        ([4, 8, 8, 8], 3, ((0, 1, 2, 3), 8)),
        ([4, 8, 8], 3, ((0, 2, 3), 8)),
        ([8, 16], 3, ((1, 3), 16)),
        ([16], 2, ((2,), 32)),
        ([4, 4], 3, None),
        ([2, 4], 3, None),
        ([64], 3, None),
        ([None], 3, None),
        ([16, 16, 16, 16], 3, None),
    ],
)
def test_choice_of_stages(strides, last_stage, stages_and_output_stride):
    assert choose_stages(strides, last_stage) == stages_and_output_stride


def test_changes_leave_the_config_alone():
    cfg = Config(dict(model=dict(heads=[dict(in_channels=1), dict(in_channels=2, norm='BN')], neck=None)))
    changes = [
        Change(('heads', 1, 'in_channels'), 3),
        Change(('heads', 1, 'norm'), REMOVED),
        Change(('neck',), dict(type='FPN')),
    ]
    changed = with_changes(cfg, [change.below(('model',)) for change in changes])
    assert changed.to_dict() == dict(
        model=dict(heads=[dict(in_channels=1), dict(in_channels=3)], neck=dict(type='FPN'))
    )
    assert cfg.to_dict() == dict(model=dict(heads=[dict(in_channels=1), dict(in_channels=2, norm='BN')], neck=None))


# --- the rest of the config ------------------------------------------------------------------------------------------


def test_preprocessing():
    before = swap_config('mmdet::detr/detr_r50_8xb2-150e_coco.py', 'atto')
    assert before.after.model.data_preprocessor.pad_size_divisor == 32
    cfg = swapped('mmdet::ssd/ssd300_coco.py')
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375] and cfg.model.data_preprocessor.bgr_to_rgb is True
    yolox = swapped('mmdet::yolox/yolox_s_8xb8-300e_coco.py').model.data_preprocessor
    assert yolox.mean == [123.675, 116.28, 103.53] and yolox.pad_size_divisor == 32


def test_old_weights_go():
    swap = swap_config('mmdet::faster_rcnn/faster-rcnn_r50-caffe_fpn_ms-1x_coco-person.py', 'atto')
    assert swap.before.load_from and swap.after.load_from is None
    assert any('load_from=' in note for note in swap.notes) and any(
        'no weights were given' in note for note in swap.notes
    )
    swap = swap_config(RETINANET, 'atto', weights='timm:convnext_atto.d2_in1k')
    assert swap.after.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='timm:convnext_atto.d2_in1k')
    assert [note.split(',')[0] for note in swap.notes] == ['frozen_stages=1 of backbone was for the old backbone']


def test_optimizer_stays_without_names_of_the_old_backbone():
    cfg = swapped('mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py')
    before = Config.fromfile(cfg_path('mmdet', 'mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py'))
    keys = set(cfg.optim_wrapper.paramwise_cfg.custom_keys)
    gone = set(before.optim_wrapper.paramwise_cfg.custom_keys) - keys
    assert {'backbone', 'query_embed', 'query_feat', 'level_embed'} <= keys
    assert {'backbone.patch_embed.norm', 'relative_position_bias_table', 'absolute_pos_embed'} <= gone
    assert not any('blocks' in key or 'downsample' in key for key in keys)
    assert cfg.optim_wrapper.optimizer == before.optim_wrapper.optimizer
    cfg = Config.fromfile(cfg_path('mmseg', 'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py'))
    cfg.model.backbone.update(img_size=64, num_layers=4, out_indices=[0, 1, 2, 3])  # less to compute
    beit = swap_config(cfg, 'atto')
    assert beit.after.model.neck is None
    assert 'constructor' not in beit.after.optim_wrapper and 'paramwise_cfg' not in beit.after.optim_wrapper
    assert any('LayerDecayOptimizerConstructor counted layers of the old backbone' in note for note in beit.notes)


def cfg_path(toolkit: str, name: str) -> Path:
    return Path(importlib.import_module(toolkit).__file__).parent / '.mim' / 'configs' / name


def test_recipe():
    cfg = swap_backbone('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'base', recipe=True)
    assert cfg.model.backbone == dict(type='ConvNeXt', arch='base', layer_scale_init_value=1.0, drop_path_rate=0.7)
    assert {key: value for key, value in cfg.optim_wrapper.items() if key != '_scope_'} == dict(
        type='AmpOptimWrapper',
        loss_scale='dynamic',
        constructor='ConvNeXtLayerDecayConstructor',
        paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.8),
        optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    )
    cfg = swap_backbone(DEEPLAB, 'pico', recipe=True)
    assert cfg.model.backbone.drop_path_rate == 0.4
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_type='stage_wise', decay_rate=0.9)
    assert cfg.param_scheduler[0].eta_min == pytest.approx(1e-6), '1e-4 of lr 0.01 would be all of lr 1e-4'
    yolox = swap_backbone('mmdet::yolox/yolox_s_8xb8-300e_coco.py', 'atto', recipe=True)
    assert yolox.optim_wrapper.optimizer.lr == pytest.approx(4e-4), 'its base batch is 64'


@pytest.mark.parametrize(
    'arch, decay_rate, drop_path_of_detectors, drop_path_of_segmentors',
    [
        ('tiny', 0.7, 0.4, 0.4),
        ('small', 0.7, 0.6, 0.3),
        ('base', 0.8, 0.7, 0.4),
        ('large', 0.7, 0.7, 0.4),
        ('xlarge', 0.7, 0.8, 0.4),
        ('atto', 0.7, 0.4, 0.4),
        (MICRO, 0.7, 0.4, 0.4),
    ],
)
def test_recipes_of_the_archs(arch, decay_rate, drop_path_of_detectors, drop_path_of_segmentors):
    """Official numbers of Cascade Mask R-CNN and UperNet; an arch without a recipe takes that of tiny."""
    optimizer = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    common = dict(layer_scale_init_value=1.0, optimizer=optimizer, wrapper_type='AmpOptimWrapper', batch_size=16)
    assert dataclasses.asdict(read_recipe(arch, segmentation=False)) == dict(
        common,
        drop_path_rate=drop_path_of_detectors,
        paramwise_cfg=dict(decay_type='layer_wise', decay_rate=decay_rate),
    )
    assert dataclasses.asdict(read_recipe(arch, segmentation=True)) == dict(
        common, drop_path_rate=drop_path_of_segmentors, paramwise_cfg=dict(decay_type='stage_wise', decay_rate=0.9)
    )


def test_recipe_of_an_arch_that_stays():
    """Drop path and layer decay are both those of the ConvNeXt that is there."""
    cfg = swap_backbone(swapped(RETINANET, 'base'), recipe=True)
    assert cfg.model.backbone.arch == 'base' and cfg.model.backbone.drop_path_rate == 0.7
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 0.8


def test_recipe_keeps_keys_of_other_modules():
    cfg = swapped('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', recipe=True)
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert set(keys) == {'query_embed', 'query_feat', 'level_embed'}
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build_module(cfg.model)
    rates = settings(model, cfg.optim_wrapper.paramwise_cfg.to_dict(), lr=1.0)
    assert rates['panoptic_head.query_embed.weight'] == (1.0, 0.0)
    assert rates['backbone.downsample_layers.0.0.weight'] == (pytest.approx(0.7**6), 0.05)


@pytest.mark.parametrize(
    'name',
    [
        C4,
        RETINANET,
        DEEPLAB,
        UNET,
        VIT,
        'mmdet::ssd/ssd300_coco.py',
        'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
        'mmseg::encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    ],
)
@pytest.mark.parametrize('recipe', [False, True])
def test_twice_is_once(name, recipe):
    once = swapped(name, recipe=recipe)
    before = once.to_dict()
    twice = swap_backbone(once, recipe=recipe)
    assert twice.to_dict() == once.to_dict() == before


def test_another_arch_later():
    assert swap_backbone(swapped(C4), 'pico').to_dict() == swapped(C4, 'pico').to_dict()
    assert swap_backbone(swapped(UNET), 'pico').to_dict() == swapped(UNET, 'pico').to_dict()


def test_weights_of_our_own_model_stay():
    """A swapped config that goes on from a checkpoint of its own."""
    cfg = swapped(RETINANET)
    cfg.load_from = 'work_dirs/mine/epoch_12.pth'
    assert swap_backbone(cfg).load_from == 'work_dirs/mine/epoch_12.pth'
    assert swap_backbone(cfg, 'pico').load_from is None


def test_config_of_python_objects():
    cfg = Config(dict(model=dict(type=ConvNeXt, backbone=dict(type=ConvNeXt)), default_scope='mmdet'))
    with pytest.raises(UserError, match='is a new-style config, whose types are Python objects'):
        swap_backbone(cfg)


def test_input_is_left_alone():
    cfg = Config.fromfile(cfg_path('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'))
    before = cfg.to_dict()
    swap_backbone(cfg, 'atto')
    assert cfg.to_dict() == before


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, sentence',
    [
        (
            'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
            'PIDNet gives a tensor of 4 dimensions in testing',
        ),
        ('mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py', 'a tensor of 2 dimensions in training'),
        ('mmseg::san/san-vit-b16_coco-stuff164k-640x640.py', 'MultimodalEncoderDecoder has no backbone='),
        ('mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py', 'other features in training'),
        ('mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py', 'neck.rfp_backbone sits inside a neck'),
        ('mmdet::common/ms_3x_coco.py', 'holds no model'),
        ('mmdet::no/such.py', 'no/such.py cannot be read'),
    ],
)
def test_refusals_write_nothing(name, sentence, tmp_path, tool):
    message, _ = tool('swap_backbone', name, '-o', tmp_path / 'out.py')
    assert message.startswith('error: ') and sentence in message
    assert not list(tmp_path.iterdir())


def test_wrong_channels_are_refused():
    cfg = Config.fromfile(cfg_path('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'))
    cfg.model.neck.in_channels = [256, 512, 1024, 1024]
    with pytest.raises(UserError, match=r'FPN has in_channels=\[256, 512, 1024, 1024\], .* gives \[256, 512, 1024, 20'):
        swap_backbone(cfg, 'atto')


def test_a_backbone_that_nothing_follows_is_refused():
    cfg = Config.fromfile(cfg_path('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'))
    for key in ('neck', 'bbox_head'):
        del cfg.model[key]
    with pytest.raises(UserError, match='nothing next to backbone takes its features'):
        swap_backbone(cfg, 'atto')


# --- written configs -------------------------------------------------------------------------------------------------


def test_written_config_moves(tmp_path, monkeypatch, tool):
    """Of a user's own config, given by a relative path; written into one folder, used in another."""
    (tmp_path / 'own').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'own' / 'mine.py').write_text(f'_base_ = {C4!r}\ntrain_dataloader = dict(batch_size=7)\n')
    monkeypatch.chdir(tmp_path)
    message, text = tool('swap_backbone', 'own/mine.py', '--arch', 'atto', '-o', 'out.py')
    assert message is None
    assert re.search(r'model.rpn_head.in_channels +1024 +160\n', text)
    assert {path.name for path in tmp_path.iterdir()} == {'own', 'elsewhere', 'out.py'}, 'no draft stays'
    moved = (tmp_path / 'out.py').rename(tmp_path / 'elsewhere' / 'moved.py')
    monkeypatch.chdir('/')
    cfg = Config.fromfile(moved)
    assert cfg.train_dataloader.batch_size == 7
    assert cfg.to_dict() == swapped(tmp_path / 'own' / 'mine.py').to_dict()
    assert len(moved.read_text().splitlines()) < 40, 'the difference alone'


def test_difference():
    before = dict(a=1, b=dict(x=1, y=2), c=dict(type='A', z=dict(k=1, l=2)), d=[1], e=None, f=(1,))
    after = dict(a=1, b=dict(x=1), c=dict(type='A', z=dict(k=3, l=2)), d=dict(n=1), e=dict(n=1), f=[1], g=dict(n=1))
    assert overrides(differences(before, after)) == dict(
        b=dict(_delete_=True, x=1),
        c=dict(z=dict(k=3)),
        d=dict(_delete_=True, n=1),
        e=dict(_delete_=True, n=1),
        f=[1],
        g=dict(n=1),
    )


def test_table():
    before = dict(a=1, b=dict(type='A', x=1, y=2), c=dict(type='A', z=[1]), d=[1])
    after = dict(a=1, b=dict(type='A', x=3), c=dict(type='B', z=(1,)), d=[1], e=dict(n=1))
    assert table(differences(before, after), ['read this']).splitlines() == [
        '     before    after',
        'b.x  1         3',
        'b.y  2         (removed)',
        'c    A(z=[1])  B(z=(1,))',
        'e              dict(n=1)',
        'note: read this',
    ]


def test_long_values_are_broken_into_lines():
    value = dict(name='x' * 60, items=[dict(a=1), 'y' * 60], pair=(1,))
    text = as_source(value, column=8)
    assert text == (f"dict(\n    name='{'x' * 60}',\n    items=[dict(a=1), '{'y' * 60}'],\n    pair=(1,),\n)")
    assert as_source({'a b': [1]}, column=0) == "{'a b': [1]}"


@pytest.mark.parametrize('name', ['c4', 'retinanet', 'deeplab'])
def test_configs_written_by_0_1_0_train(sweep, name):
    """They were written by tools/swap_backbone.py of that version, with --arch atto, two of them with --recipe."""
    cfg = Config.fromfile(ROOT / 'tests' / 'reference' / 'v0_1_0' / f'swapped_{name}.py')
    assert cfg.model.backbone.type == 'ConvNeXt'
    received = train_a_step(sweep, cfg)
    first_head = dict(c4='rpn_head', retinanet='bbox_head', deeplab='decode_head.c1_bottleneck')[name]
    sizes = dict(
        c4=[[8, 8]],
        retinanet=[[16, 16], [8, 8], [4, 4], [2, 2], [1, 1]],
        deeplab=[[32, 32]],
    )[name]
    assert received[first_head][: len(sizes)] == sizes
    if name != 'c4':
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = build_module(cfg.model)
        rates = settings(model, cfg.optim_wrapper.paramwise_cfg.to_dict(), lr=1.0)
        stem_rate = dict(retinanet=0.7**6, deeplab=0.9**6)[name]
        assert rates['backbone.downsample_layers.0.0.weight'] == (pytest.approx(stem_rate), 0.05)


def test_own_config_is_not_overwritten(tmp_path, tool):
    mine = tmp_path / 'mine.py'
    mine.write_text(f'_base_ = {RETINANET!r}\n')
    message, _ = tool('swap_backbone', mine, '-o', mine)
    assert 'is the file that is read' in message and 'ConvNeXt' not in mine.read_text()


GUIDE = (ROOT / 'docs' / 'guides' / 'swap.md').read_text()
COMMANDS = re.findall(r'^python tools/swap_backbone\.py ((?:.|\\\n)+?)$', GUIDE.replace('\\\n', ' '), re.M)


def test_commands_of_the_guide_are_found():
    assert len(COMMANDS) == 5


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command.split()[0].split('/')[0])
def test_command_of_the_guide(command, tmp_path, monkeypatch, tool, sweep):
    monkeypatch.chdir(tmp_path)
    message, text = tool('swap_backbone', *command.split())
    assert message is None
    out = command.split()[command.split().index('-o') + 1]
    assert text.endswith(f'written to {out}\n')
    row = next(line for line in GUIDE.splitlines() if line.startswith(f'| `{out}`'))
    backbone = Config.fromfile(tmp_path / out).model.backbone
    assert f'{backbone.get("output_stride", 32)} |' in row
    for channels in re.findall(r'→ (\[[\d, ]+\]|\d+)', row):
        assert channels in (tmp_path / out).read_text(), 'the channels that the guide shows'
    cfg = swap_backbone(tmp_path / out, 'atto')  # as it is, it would take minutes
    train_a_step(sweep, cfg, 320 if out == 'dino.py' else 128)  # DINO takes its 900 queries from the features


# --- mmpretrain ------------------------------------------------------------------------------------------------------

THEIRS = (
    'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
)


@pytest.mark.parametrize('name', THEIRS)
def test_convnext_of_mmpretrain_without_it(name):
    swap = swap_config(name)
    old, new = swap.before.model.backbone, swap.after.model.backbone
    assert old.type == 'mmpretrain.ConvNeXt'
    assert new == dict(
        type='ConvNeXt', arch='tiny', drop_path_rate=0.4, layer_scale_init_value=1.0, init_cfg=old.init_cfg
    )
    assert swap.after.custom_imports.imports == ['convnext_dense']
    assert swap.after.optim_wrapper.constructor == 'ConvNeXtLayerDecayConstructor'
    assert swap.after.optim_wrapper.paramwise_cfg.decay_rate == swap.before.optim_wrapper.paramwise_cfg.decay_rate
    assert swap.after.model.get('neck') == swap.before.model.get('neck')
    assert not swap.notes


@pytest.mark.parametrize('name', THEIRS)
def test_equals_mmpretrain(name):
    try:
        import mmpretrain.models  # noqa: F401
    except Exception as error:
        pytest.skip(f'mmpretrain 1.2.0 cannot be imported here: {error}')
    swap = swap_config(name)
    with DefaultScope.overwrite_default_scope(swap.after.default_scope):
        theirs, ours = (MODELS.build(dict(cfg.model.backbone, init_cfg=None)) for cfg in (swap.before, swap.after))
    theirs.eval(), ours.eval()  # theirs returns None
    assert isinstance(ours, ConvNeXt) and type(theirs).__module__.startswith('mmpretrain')
    generator = torch.Generator().manual_seed(0)
    for param in theirs.parameters():
        param.data.copy_(torch.randn(param.shape, generator=generator) * 0.1 + (param.ndim == 1))
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 64, 96, generator=generator)
    for out, want in zip(ours(image), theirs(image), strict=True):
        assert ((out - want).norm() / want.norm()).item() < 1e-5


# --- modules that the swap brings ------------------------------------------------------------------------------------


def test_shared_head_is_the_last_stage(tmp_path):
    whole = ConvNeXt(MICRO, layer_scale_init_value=1.0)
    torch.save(whole.state_dict(), tmp_path / 'whole.pth')
    head = ConvNeXtSharedHead(
        MICRO, layer_scale_init_value=1.0, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    )
    head.init_weights()
    regions = torch.randn(5, 24, 14, 14)
    want = whole.norm3(whole.stages[3](whole.downsample_layers[3](regions)))
    torch.testing.assert_close(head(regions), want)
    assert head(regions).shape == (5, 32, 7, 7) and head(regions).is_contiguous()
    # A checkpoint of the detector holds one backbone.
    detector = torch.nn.ModuleDict(dict(backbone=ConvNeXt(MICRO, out_indices=(2,)), shared_head=head))
    assert [found.prefix for found in find_backbones(detector.state_dict())] == ['backbone.']


def test_layer_decay_of_the_shared_head():
    model = torch.nn.ModuleDict(
        dict(
            detector=torch.nn.ModuleDict(
                dict(backbone=ConvNeXt(MICRO, out_indices=(2,)), shared_head=ConvNeXtSharedHead(MICRO))
            )
        )
    )
    rates = settings(model, dict(decay_rate=0.5))
    assert rates['detector.shared_head.blocks.0.dwconv.weight'] == (0.5, 0.05)
    assert rates['detector.shared_head.downsample.1.weight'] == (0.5, 0.05)
    assert rates['detector.shared_head.norm.weight'] == (1.0, 0.0)
    assert rates['detector.backbone.downsample_layers.0.0.weight'] == (0.5**5, 0.05)
    rates = settings(model, dict(decay_rate=0.5, decay_type='stage_wise'))
    assert (
        rates['detector.shared_head.downsample.1.weight'][0]
        == rates['detector.backbone.downsample_layers.0.0.weight'][0]
        == 0.5**5
    )
    assert rates['detector.shared_head.blocks.0.dwconv.weight'][0] == 0.5


def test_adapter():
    adapter = PyramidAdapter(in_channels=[8, 16, 24, 32], out_channels=[5, 6, 7, 5], strides=[4, 1, 16, 4])
    features = [
        torch.randn(2, channels, 16 >> i, 16 >> i, requires_grad=True) for i, channels in enumerate([8, 16, 24, 32])
    ]
    outputs = adapter(features)
    assert [tuple(out.shape) for out in outputs] == [(2, 5, 16, 16), (2, 6, 64, 64), (2, 7, 4, 4), (2, 5, 16, 16)]
    sum(out.sum() for out in outputs[:2]).backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features), 'the finest output sees every stage'
    with pytest.raises(UserError, match='cannot make stride 64'):
        PyramidAdapter([8], [8], [64], in_strides=[32])
    with pytest.raises(UserError, match='as many in_channels as in_strides'):
        PyramidAdapter([8], [8], [4])


# --- the zoos --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sample_of_the_zoos(tmp_path):
    """One config of each of more than 40 families of both toolkits: swap, build, loss, backward, predict."""
    sample = ROOT / 'tests' / 'reference' / 'swap_sample.json'
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools' / 'dev' / 'swap_sweep.py'),
            '--baseline',
            str(sample),
            '--out',
            str(tmp_path / 'out.json'),
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    models = json.loads((tmp_path / 'out.json').read_text())['models'].values()
    assert len({model['configs'][0].split('/')[0] for model in models if model['outcome'] == 'runs'}) >= 40
    assert {model['configs'][0].split('/')[0] for model in models if model['outcome'] == 'refused'} == {
        'mmdet::detectors',
        'mmdet::tridentnet',
        'mmseg::ddrnet',
        'mmseg::dpt',
        'mmseg::pidnet',
    }
