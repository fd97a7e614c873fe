# Mask R-CNN with FPN and a ConvNeXt-T; leaves exchange the arch and the neck's in_channels.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
custom_hooks = [dict(type='ConvNeXtLoadHook')]
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXt', arch='tiny', drop_path_rate=0.4, layer_scale_init_value=1.0),
    neck=dict(in_channels=[96, 192, 384, 768]))
