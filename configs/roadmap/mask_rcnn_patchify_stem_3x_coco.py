# Ours, not in the paper, which trains the steps on ImageNet only.
_base_ = '../_base_/mask_rcnn_roadmap.py'
model = dict(
    backbone=dict(step='patchify_stem'),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
