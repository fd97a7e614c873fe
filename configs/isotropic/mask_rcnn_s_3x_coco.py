# Ours, not in the paper, which has isotropic models for ImageNet only: its drop path, and layer decay by ViTDet's rule.
_base_ = ['../_base_/mask_rcnn_isotropic.py', '../_base_/coco_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_iso_small_1k_224_ema.pth'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=384),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.8))
