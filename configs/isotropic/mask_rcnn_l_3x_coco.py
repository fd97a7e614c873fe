# Ours, not in the paper, which has isotropic models for ImageNet only: its drop path, and layer decay by ViTDet's rule.
_base_ = ['../_base_/mask_rcnn_isotropic.py', '../_base_/coco_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_iso_large_1k_224_ema.pth'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
