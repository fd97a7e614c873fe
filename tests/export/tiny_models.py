"""Tiny models of every family: the toolkits' own bases with few channels, layers and classes."""

from __future__ import annotations

import copy
import importlib

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from random_weights import random_weights
from torch import nn

CLASSES = 4
CHANNELS = [8, 16, 24, 32]
BACKBONE = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=CHANNELS), layer_scale_init_value=1.0)
FPN = dict(_delete_=True, type='FPN', in_channels=CHANNELS, out_channels=16, num_outs=5)
FPN_P3 = dict(FPN, start_level=1, add_extra_convs='on_output')
BOX = dict(in_channels=16, fc_out_channels=32, num_classes=CLASSES)
POOL = dict(out_channels=16)
MASK = dict(in_channels=16, conv_out_channels=8, num_convs=1, num_classes=CLASSES)
RPN = dict(in_channels=16, feat_channels=16)
FEW = dict(rpn=dict(nms_pre=60, max_per_img=40), rcnn=dict(max_per_img=20))
DENSE = dict(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=CLASSES)
NORM = dict(type='GN', num_groups=4)
BN = dict(type='BN', requires_grad=True)

DETECTORS = {
    'Faster R-CNN': (
        'faster-rcnn_r50_fpn',
        dict(neck=FPN, rpn_head=RPN, roi_head=dict(bbox_roi_extractor=POOL, bbox_head=BOX), test_cfg=FEW),
    ),
    'Mask R-CNN': (
        'mask-rcnn_r50_fpn',
        dict(
            neck=FPN,
            rpn_head=RPN,
            roi_head=dict(bbox_roi_extractor=POOL, bbox_head=BOX, mask_roi_extractor=POOL, mask_head=MASK),
            test_cfg=FEW,
        ),
    ),
    'Cascade R-CNN': (
        'cascade-rcnn_r50_fpn',
        dict(neck=FPN, rpn_head=RPN, roi_head=dict(bbox_roi_extractor=POOL), test_cfg=FEW),
    ),
    'Cascade Mask R-CNN': (
        'cascade-mask-rcnn_r50_fpn',
        dict(
            neck=FPN,
            rpn_head=RPN,
            roi_head=dict(bbox_roi_extractor=POOL, mask_roi_extractor=POOL, mask_head=MASK),
            test_cfg=FEW,
        ),
    ),
    'RetinaNet': ('retinanet_r50_fpn', dict(neck=FPN_P3, bbox_head=DENSE)),
}
# The bases of these are in the configs of their own.
DENSE_HEADS = {
    'FCOS': ('FCOS', dict(type='FCOSHead', strides=[8, 16, 32, 64, 128], norm_cfg=NORM, **DENSE)),
    'ATSS': (
        'ATSS',
        dict(
            type='ATSSHead',
            norm_cfg=NORM,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=8,
                scales_per_octave=1,
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True),
            **DENSE,
        ),
    ),
    'GFL': (
        'GFL',
        dict(
            type='GFLHead',
            norm_cfg=NORM,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=8,
                scales_per_octave=1,
                strides=[8, 16, 32, 64, 128],
            ),
            loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
            reg_max=4,
            **DENSE,
        ),
    ),
}
# The base, and the changes of its decode head.
SEGMENTORS = {
    'UperNet': ('upernet_r50', dict(in_channels=CHANNELS, channels=16)),
    'FCN': ('fcn_r50-d8', dict(in_channels=32, channels=16)),
    'PSP': ('pspnet_r50-d8', dict(in_channels=32, channels=16)),
    'DeepLabV3+': ('deeplabv3plus_r50-d8', dict(in_channels=32, channels=16, c1_in_channels=8, c1_channels=8)),
    'Semantic FPN': ('fpn_r50', dict(in_channels=[16] * 4, channels=16)),
}


def model_config(name: str) -> Config:
    """The config of a tiny model, with ``default_scope`` and class names."""
    if name in DETECTORS:
        base, changes = DETECTORS[name]
        cfg = _from_base('mmdet', base)
        changes = copy.deepcopy(changes)
        if name.startswith('Cascade'):
            changes['roi_head']['bbox_head'] = [dict(head, **BOX) for head in cfg.model.roi_head.bbox_head]
        cfg.merge_from_dict(dict(model=changes))
    elif name in DENSE_HEADS:
        kind, head = DENSE_HEADS[name]
        cfg = _from_base('mmdet', 'retinanet_r50_fpn')
        cfg.model.type = kind
        cfg.model.bbox_head = copy.deepcopy(head)
        cfg.model.neck = {key: value for key, value in FPN_P3.items() if key != '_delete_'}
    else:
        base, changes = SEGMENTORS[name]
        cfg = _from_base('mmseg', base)
        cfg.merge_from_dict(dict(model=dict(decode_head=dict(changes, num_classes=CLASSES, norm_cfg=BN))))
        cfg.model.pop('auxiliary_head', None)
        if 'neck' in cfg.model:
            cfg.model.neck.update(in_channels=CHANNELS, out_channels=16)
        cfg.model.data_preprocessor.pop('size', None)
    cfg.model.backbone = copy.deepcopy(BACKBONE)
    cfg.model.pop('pretrained', None)
    if name not in SEGMENTORS:
        cfg.model.train_cfg = None
    cfg.test_dataloader = dict(dataset=dict(metainfo=dict(classes=tuple('abcd')), pipeline=[]))
    return cfg


def build(cfg: Config) -> nn.Module:
    """The model of ``cfg`` with random weights that spread scores and boxes, in ``eval()`` mode."""
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.dataset_meta = dict(classes=list('abcd'), palette=[])
    return random_weights(model)


def _from_base(toolkit: str, name: str) -> Config:
    cfg = Config.fromfile(f'{_folder(toolkit)}/_base_/models/{name}.py')
    cfg.default_scope = toolkit
    return cfg


def _folder(toolkit: str) -> str:
    return f'{importlib.import_module(toolkit).__path__[0]}/.mim/configs'
