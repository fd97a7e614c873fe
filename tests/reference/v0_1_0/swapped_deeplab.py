# deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py with ConvNeXt, made by tools/swap_backbone.py
_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch='atto',
        layer_scale_init_value=1.0,
        drop_path_rate=0.4,
        out_indices=(0, 2, 3),
        output_stride=8,
    ),
    decode_head=dict(in_channels=320, in_index=2, c1_in_channels=40),
    auxiliary_head=dict(in_channels=160, in_index=1),
)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='ConvNeXtLayerDecayConstructor',
    paramwise_cfg=dict(decay_type='stage_wise', decay_rate=0.9),
    loss_scale='dynamic',
)
param_scheduler = [dict(type='PolyLR', eta_min=1e-06, power=0.9, begin=0, end=80000, by_epoch=False, _scope_='mmseg')]
