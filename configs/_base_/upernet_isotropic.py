# UperNet with an isotropic ConvNeXt and the simple feature pyramid of ViTDet; leaves exchange arch and width.
_base_ = 'upernet.py'
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXtIsotropic', arch='small', drop_path_rate=0.1),
    neck=dict(type='SimpleFeaturePyramid', in_channels=384, strides=[4, 8, 16, 32]),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256),
)
