# No config was ever released for this row of the paper: Swin-T's recipe with the backbone exchanged.
_base_ = ['../_base_/cascade_mask_rcnn.py', '../_base_/coco_3x_swin.py']
weights = 'torchvision://resnet50'
model = dict(
    backbone=dict(
        _delete_=True, type='mmdet.ResNet', depth=50, frozen_stages=1, norm_eval=True,
        style='pytorch', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[256, 512, 1024, 2048]))
