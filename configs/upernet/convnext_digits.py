# UperNet on the built-in digits, from scratch in minutes on a CPU: the demo. ConvNeXt-atto and narrow heads.
_base_ = ['../_base_/upernet.py', '../_base_/ade20k_160k.py']
data_root = '{{$CONVNEXT_DENSE_DATA:data}}/digits/ade/ADEChallengeData2016'
metainfo = dict(
    classes=('background', *'0123456789'),
    palette=[[0, 0, 0], [31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189], [140, 86, 75],
             [227, 119, 194], [127, 127, 127], [188, 189, 34], [23, 190, 207]])
bn = dict(type='BN', requires_grad=True)
iterations = 2400
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch='atto', drop_path_rate=0.),
    decode_head=dict(
        in_channels=[40, 80, 160, 320],
        channels=64,
        num_classes=11,
        norm_cfg=bn,
        # Background covers four fifths of the pixels.
        loss_decode=dict(class_weight=[0.5] + [1.0] * 10)),
    auxiliary_head=dict(in_channels=160, channels=32, num_classes=11, norm_cfg=bn),
    test_cfg=dict(_delete_=True, mode='whole'))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo, seg_map_suffix='.png', img_suffix='.jpg')
train_dataloader = dict(batch_size=16, num_workers=2, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(batch_size=10, num_workers=2, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=iterations, val_interval=iterations // 6)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=iterations),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    clip_grad=dict(max_norm=5),
    constructor='ConvNeXtLayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0),  # from scratch all layers learn at one rate
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
default_hooks = dict(checkpoint=dict(interval=iterations // 3, max_keep_ckpts=2))
