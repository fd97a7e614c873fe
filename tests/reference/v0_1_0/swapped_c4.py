# faster-rcnn_r50-caffe-c4_ms-1x_coco.py with ConvNeXt, made by tools/swap_backbone.py
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(_delete_=True, type='ConvNeXt', arch='atto', layer_scale_init_value=1.0, out_indices=(2,)),
    rpn_head=dict(in_channels=160),
    roi_head=dict(
        shared_head=dict(_delete_=True, type='ConvNeXtSharedHead', arch='atto', layer_scale_init_value=1.0),
        bbox_roi_extractor=dict(out_channels=160),
        bbox_head=dict(in_channels=320),
    ),
)
