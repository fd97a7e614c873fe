# Cascade Mask R-CNN with FPN and a ConvNeXt-T; leaves exchange the arch and the neck's in_channels.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
custom_hooks = [dict(type='ConvNeXtLoadHook')]
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXt', arch='tiny', drop_path_rate=0.4, layer_scale_init_value=1.0),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(
        # Official: four convolutions with SyncBN and one fully connected layer, GIoU on decoded boxes, per class;
        # each of the three stages regresses finer offsets than the one before.
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=stds),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ]))
