# Mask R-CNN with an isotropic ConvNeXt and the simple feature pyramid of ViTDet; leaves exchange arch and width.
_base_ = 'mask_rcnn.py'
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXtIsotropic', arch='small', drop_path_rate=0.1),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=384),
)
