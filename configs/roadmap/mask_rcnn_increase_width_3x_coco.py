# Ours, not in the paper, which trains the steps on ImageNet only.
_base_ = '../_base_/mask_rcnn_roadmap.py'
model = dict(
    backbone=dict(step='increase_width'),
    neck=dict(in_channels=[384, 768, 1536, 3072]),
)
