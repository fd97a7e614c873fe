# Ours: nobody has published Mask R-CNN on these weights. Drop path, decay
# and lr are those of mask_rcnn/convnext_b_3x_coco.py.
_base_ = ['../_base_/mask_rcnn.py', '../_base_/coco_3x.py']
weights = 'hf-hub:facebook/dinov3-convnext-base-pretrain-lvd1689m'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.8))
