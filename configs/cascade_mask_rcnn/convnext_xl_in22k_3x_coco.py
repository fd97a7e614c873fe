_base_ = ['../_base_/cascade_mask_rcnn.py', '../_base_/coco_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_xlarge_22k_224.pth'
model = dict(
    backbone=dict(arch='xlarge', drop_path_rate=0.8, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[256, 512, 1024, 2048]))
# Officially without mixed precision.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
