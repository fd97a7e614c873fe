# Ours, not in the paper, which trains the steps on ImageNet only.
_base_ = '../_base_/mask_rcnn_roadmap.py'
model = dict(
    backbone=dict(step='separate_downsampling'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
