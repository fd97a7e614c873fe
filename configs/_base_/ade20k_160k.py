# ADE20K semantic segmentation, 160k iterations, as in the official ConvNeXt segmentation code; crops of 512.
# The import: see upernet.py.
_base_ = __import__('convnext_dense') and [
    'mmseg::_base_/datasets/ade20k.py', 'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_160k.py']

# $CONVNEXT_DENSE_DATA is the folder that holds ade/ (and coco/); --cfg-options data_root=... moves this one alone.
data_root = '{{$CONVNEXT_DENSE_DATA:data}}/ade/ADEChallengeData2016'
# 8 GPUs x 2 images.
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

param_scheduler = [
    # mmseg's own ConvNeXt and Swin configs start the polynomial after the warm-up; officially both run from iteration 0
    # and their factors multiply.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000),
]
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='ConvNeXtLayerDecayConstructor',
    paramwise_cfg=dict(decay_type='stage_wise', decay_rate=0.9),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05))
auto_scale_lr = dict(enable=False, base_batch_size=16)
