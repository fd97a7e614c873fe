# Ours, not in the paper, which trains the steps on ImageNet only.
_base_ = '../_base_/mask_rcnn_roadmap.py'
model = dict(
    backbone=dict(step='kernel_9'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
