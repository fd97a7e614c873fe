# Ours: nobody has published Mask R-CNN on these weights. Drop path, decay
# and lr are those of cascade_mask_rcnn/convnext_l_in22k_3x_coco.py.
_base_ = ['../_base_/mask_rcnn.py', '../_base_/coco_3x.py']
weights = 'hf-hub:facebook/dinov3-convnext-large-pretrain-lvd1689m'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.7, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[192, 384, 768, 1536]))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
