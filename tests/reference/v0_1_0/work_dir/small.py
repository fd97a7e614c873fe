auto_scale_lr = dict(base_batch_size=16, enable=False)
backbone_norm_cfg = dict(_scope_='mmseg', requires_grad=True, type='LN')
bn = dict(requires_grad=True, type='BN')
crop_size = (
    512,
    512,
)
custom_hooks = [
    dict(type='ConvNeXtLoadHook'),
]
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'convnext_dense',
    ],
)
data_preprocessor = dict(
    _scope_='mmseg',
    bgr_to_rgb=True,
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    pad_val=0,
    seg_pad_val=255,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    type='SegDataPreProcessor',
)
data_root = '/home/user/data/digits/ade/ADEChallengeData2016'
dataset = dict(
    data_root='/home/user/data/digits/ade/ADEChallengeData2016',
    img_suffix='.jpg',
    metainfo=dict(
        classes=(
            'background',
            '0',
            '1',
            '2',
            '3',
            '4',
            '5',
            '6',
            '7',
            '8',
            '9',
        ),
        palette=[
            [
                0,
                0,
                0,
            ],
            [
                31,
                119,
                180,
            ],
            [
                255,
                127,
                14,
            ],
            [
                44,
                160,
                44,
            ],
            [
                214,
                39,
                40,
            ],
            [
                148,
                103,
                189,
            ],
            [
                140,
                86,
                75,
            ],
            [
                227,
                119,
                194,
            ],
            [
                127,
                127,
                127,
            ],
            [
                188,
                189,
                34,
            ],
            [
                23,
                190,
                207,
            ],
        ],
    ),
    seg_map_suffix='.png',
    type='BaseSegDataset',
)
dataset_type = 'ADE20KDataset'
default_hooks = dict(
    checkpoint=dict(_scope_='mmseg', by_epoch=False, interval=60, max_keep_ckpts=2, type='CheckpointHook'),
    logger=dict(_scope_='mmseg', interval=50, log_metric_by_epoch=False, type='LoggerHook'),
    param_scheduler=dict(_scope_='mmseg', type='ParamSchedulerHook'),
    sampler_seed=dict(_scope_='mmseg', type='DistSamplerSeedHook'),
    timer=dict(_scope_='mmseg', type='IterTimerHook'),
    visualization=dict(_scope_='mmseg', type='SegVisualizationHook'),
)
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True, dist_cfg=dict(backend='nccl'), mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)
)
img_ratios = [
    0.5,
    0.75,
    1.0,
    1.25,
    1.5,
    1.75,
]
iterations = 2400
launcher = 'none'
load_from = None
log_level = 'INFO'
log_processor = dict(by_epoch=False)
metainfo = dict(
    classes=(
        'background',
        '0',
        '1',
        '2',
        '3',
        '4',
        '5',
        '6',
        '7',
        '8',
        '9',
    ),
    palette=[
        [
            0,
            0,
            0,
        ],
        [
            31,
            119,
            180,
        ],
        [
            255,
            127,
            14,
        ],
        [
            44,
            160,
            44,
        ],
        [
            214,
            39,
            40,
        ],
        [
            148,
            103,
            189,
        ],
        [
            140,
            86,
            75,
        ],
        [
            227,
            119,
            194,
        ],
        [
            127,
            127,
            127,
        ],
        [
            188,
            189,
            34,
        ],
        [
            23,
            190,
            207,
        ],
    ],
)
model = dict(
    _scope_='mmseg',
    auxiliary_head=dict(
        align_corners=False,
        channels=8,
        concat_input=False,
        dropout_ratio=0.1,
        in_channels=8,
        in_index=2,
        loss_decode=dict(loss_weight=0.4, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=11,
        num_convs=1,
        type='FCNHead',
    ),
    backbone=dict(
        arch=dict(
            channels=[
                8,
                8,
                8,
                8,
            ],
            depths=[
                1,
                1,
                1,
                1,
            ],
        ),
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        type='ConvNeXt',
    ),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_val=0,
        seg_pad_val=255,
        size=(
            64,
            64,
        ),
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='SegDataPreProcessor',
    ),
    decode_head=dict(
        align_corners=False,
        channels=8,
        dropout_ratio=0.1,
        in_channels=[
            8,
            8,
            8,
            8,
        ],
        in_index=[
            0,
            1,
            2,
            3,
        ],
        loss_decode=dict(
            class_weight=[
                0.5,
                1.0,
                1.0,
                1.0,
                1.0,
                1.0,
                1.0,
                1.0,
                1.0,
                1.0,
                1.0,
            ],
            loss_weight=1.0,
            type='CrossEntropyLoss',
            use_sigmoid=False,
        ),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=11,
        pool_scales=(
            1,
            2,
            3,
            6,
        ),
        type='UPerHead',
    ),
    pretrained=None,
    test_cfg=dict(mode='whole'),
    train_cfg=dict(),
    type='EncoderDecoder',
)
norm_cfg = dict(_scope_='mmseg', requires_grad=True, type='SyncBN')
optim_wrapper = dict(
    clip_grad=dict(max_norm=5),
    constructor='ConvNeXtLayerDecayConstructor',
    optimizer=dict(lr=0.002, type='AdamW', weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=1.0),
    type='OptimWrapper',
)
optimizer = dict(_scope_='mmseg', lr=0.01, momentum=0.9, type='SGD', weight_decay=0.0005)
param_scheduler = [
    dict(begin=0, by_epoch=False, end=50, start_factor=0.01, type='LinearLR'),
    dict(begin=0, by_epoch=False, end=2400, eta_min=0.0, power=1.0, type='PolyLR'),
]
resume = False
test_cfg = dict(_scope_='mmseg', type='TestLoop')
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _scope_='mmseg',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        data_root='/home/user/data/digits/ade/ADEChallengeData2016',
        img_suffix='.jpg',
        metainfo=dict(
            classes=(
                'background',
                '0',
                '1',
                '2',
                '3',
                '4',
                '5',
                '6',
                '7',
                '8',
                '9',
            ),
            palette=[
                [
                    0,
                    0,
                    0,
                ],
                [
                    31,
                    119,
                    180,
                ],
                [
                    255,
                    127,
                    14,
                ],
                [
                    44,
                    160,
                    44,
                ],
                [
                    214,
                    39,
                    40,
                ],
                [
                    148,
                    103,
                    189,
                ],
                [
                    140,
                    86,
                    75,
                ],
                [
                    227,
                    119,
                    194,
                ],
                [
                    127,
                    127,
                    127,
                ],
                [
                    188,
                    189,
                    34,
                ],
                [
                    23,
                    190,
                    207,
                ],
            ],
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                scale=(
                    64,
                    64,
                ),
                type='Resize',
            ),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        seg_map_suffix='.png',
        type='BaseSegDataset',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmseg', shuffle=False, type='DefaultSampler'),
)
test_evaluator = dict(
    _scope_='mmseg',
    iou_metrics=[
        'mIoU',
    ],
    type='IoUMetric',
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        scale=(
            64,
            64,
        ),
        type='Resize',
    ),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_cfg = dict(_scope_='mmseg', max_iters=60, type='IterBasedTrainLoop', val_interval=60)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _scope_='mmseg',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        data_root='/home/user/data/digits/ade/ADEChallengeData2016',
        img_suffix='.jpg',
        metainfo=dict(
            classes=(
                'background',
                '0',
                '1',
                '2',
                '3',
                '4',
                '5',
                '6',
                '7',
                '8',
                '9',
            ),
            palette=[
                [
                    0,
                    0,
                    0,
                ],
                [
                    31,
                    119,
                    180,
                ],
                [
                    255,
                    127,
                    14,
                ],
                [
                    44,
                    160,
                    44,
                ],
                [
                    214,
                    39,
                    40,
                ],
                [
                    148,
                    103,
                    189,
                ],
                [
                    140,
                    86,
                    75,
                ],
                [
                    227,
                    119,
                    194,
                ],
                [
                    127,
                    127,
                    127,
                ],
                [
                    188,
                    189,
                    34,
                ],
                [
                    23,
                    190,
                    207,
                ],
            ],
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                scale=(
                    64,
                    64,
                ),
                type='Resize',
            ),
            dict(type='PackSegInputs'),
        ],
        seg_map_suffix='.png',
        type='BaseSegDataset',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmseg', shuffle=True, type='InfiniteSampler'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        scale=(
            64,
            64,
        ),
        type='Resize',
    ),
    dict(type='PackSegInputs'),
]
tta_model = dict(_scope_='mmseg', type='SegTTAModel')
tta_pipeline = [
    dict(_scope_='mmseg', backend_args=None, type='LoadImageFromFile'),
    dict(
        _scope_='mmseg',
        transforms=[
            [
                dict(keep_ratio=True, scale_factor=0.5, type='Resize'),
                dict(keep_ratio=True, scale_factor=0.75, type='Resize'),
                dict(keep_ratio=True, scale_factor=1.0, type='Resize'),
                dict(keep_ratio=True, scale_factor=1.25, type='Resize'),
                dict(keep_ratio=True, scale_factor=1.5, type='Resize'),
                dict(keep_ratio=True, scale_factor=1.75, type='Resize'),
            ],
            [
                dict(direction='horizontal', prob=0.0, type='RandomFlip'),
                dict(direction='horizontal', prob=1.0, type='RandomFlip'),
            ],
            [
                dict(type='LoadAnnotations'),
            ],
            [
                dict(type='PackSegInputs'),
            ],
        ],
        type='TestTimeAug',
    ),
]
val_cfg = dict(_scope_='mmseg', type='ValLoop')
val_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _scope_='mmseg',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        data_root='/home/user/data/digits/ade/ADEChallengeData2016',
        img_suffix='.jpg',
        metainfo=dict(
            classes=(
                'background',
                '0',
                '1',
                '2',
                '3',
                '4',
                '5',
                '6',
                '7',
                '8',
                '9',
            ),
            palette=[
                [
                    0,
                    0,
                    0,
                ],
                [
                    31,
                    119,
                    180,
                ],
                [
                    255,
                    127,
                    14,
                ],
                [
                    44,
                    160,
                    44,
                ],
                [
                    214,
                    39,
                    40,
                ],
                [
                    148,
                    103,
                    189,
                ],
                [
                    140,
                    86,
                    75,
                ],
                [
                    227,
                    119,
                    194,
                ],
                [
                    127,
                    127,
                    127,
                ],
                [
                    188,
                    189,
                    34,
                ],
                [
                    23,
                    190,
                    207,
                ],
            ],
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                scale=(
                    64,
                    64,
                ),
                type='Resize',
            ),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        seg_map_suffix='.png',
        type='BaseSegDataset',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmseg', shuffle=False, type='DefaultSampler'),
)
val_evaluator = dict(
    _scope_='mmseg',
    iou_metrics=[
        'mIoU',
    ],
    type='IoUMetric',
)
vis_backends = [
    dict(_scope_='mmseg', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmseg',
    name='visualizer',
    type='SegLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ],
)
work_dir = '/home/user/work_dirs/small'
