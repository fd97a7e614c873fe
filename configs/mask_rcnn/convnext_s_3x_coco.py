# Ours, not in the paper: drop path and optimizer of the Cascade Mask R-CNN with this backbone.
_base_ = ['../_base_/mask_rcnn.py', '../_base_/coco_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_small_1k_224.pth'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.6, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
