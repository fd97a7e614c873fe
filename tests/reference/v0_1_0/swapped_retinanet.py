# retinanet_r50_fpn_1x_coco.py with ConvNeXt, made by tools/swap_backbone.py
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch='atto',
        layer_scale_init_value=1.0,
        drop_path_rate=0.4,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[80, 160, 320], start_level=0),
)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='ConvNeXtLayerDecayConstructor',
    paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.7),
    loss_scale='dynamic',
)
