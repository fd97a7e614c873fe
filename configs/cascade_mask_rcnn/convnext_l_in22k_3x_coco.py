_base_ = ['../_base_/cascade_mask_rcnn.py', '../_base_/coco_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_224.pth'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.7, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[192, 384, 768, 1536]))
# Officially without mixed precision.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
