# No config was ever released for this row of the paper: Swin-T's recipe with the backbone exchanged.
_base_ = ['../_base_/cascade_mask_rcnn.py', '../_base_/coco_3x_swin.py']
weights = 'open-mmlab://resnext101_64x4d'
model = dict(
    backbone=dict(
        _delete_=True, type='mmdet.ResNeXt', depth=101, groups=64, base_width=4, frozen_stages=1, norm_eval=True,
        style='pytorch', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[256, 512, 1024, 2048]))
