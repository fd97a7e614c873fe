# Mask R-CNN on the built-in digits, from scratch in minutes on a CPU: the demo. A small ConvNeXt and narrow heads.
_base_ = ['../_base_/mask_rcnn.py', '../_base_/coco_3x.py']
data_root = '{{$CONVNEXT_DENSE_DATA:data}}/digits/coco/'
metainfo = dict(classes=tuple('0123456789'))
bn = dict(type='BN')
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=[2, 2, 2, 1], channels=[48, 96, 192, 384]), drop_path_rate=0.),
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=64, norm_cfg=bn),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4, 8])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, norm_cfg=bn, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=16, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=10)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=16, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=10, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=6, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, begin=0, end=6, T_max=6, eta_min=1e-5),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    clip_grad=dict(max_norm=35),
    constructor='ConvNeXtLayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0),  # from scratch all layers learn at one rate
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=2))
