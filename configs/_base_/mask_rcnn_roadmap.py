# Mask R-CNN on a step of the roadmap from ResNet-50 to ConvNeXt-T; leaves exchange the step and the neck's in_channels.
# Weights of the steps were never published: every step trains from scratch, so that they can be compared, with one
# learning rate for all layers, and BatchNorms over all GPUs. With ImageNet weights of your own set
# model.backbone.init_cfg and optim_wrapper.paramwise_cfg.decay_rate=0.95. The rest is the recipe of ConvNeXt-T.
_base_ = ['mask_rcnn.py', 'coco_3x.py']
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXtRoadmap', step='separate_downsampling', regime='T', drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
sync_bn = 'torch'
