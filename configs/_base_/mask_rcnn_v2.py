# Mask R-CNN with a ConvNeXt V2: GRN instead of layer scale (arXiv 2301.00808, section 3.2), tested with soft-NMS (A.3).
_base_ = 'mask_rcnn.py'
model = dict(
    backbone=dict(arch='base', use_grn=True, layer_scale_init_value=0.),
    neck=dict(in_channels=[128, 256, 512, 1024]),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))
