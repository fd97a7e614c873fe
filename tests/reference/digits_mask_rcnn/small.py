# A smaller Mask R-CNN than the demo's; weights.pth is its last epoch in float16:
# python -m convnext_dense.sample_data data/digits; python tools/train.py tests/reference/digits_mask_rcnn/small.py
# Five minutes on one core; box AP 0.576, mask AP 0.562 on the 250 val images.
_base_ = ['../../../configs/mask_rcnn/convnext_digits.py']
model = dict(
    backbone=dict(arch=dict(depths=[1, 1, 2, 1], channels=[24, 48, 96, 128])),
    neck=dict(in_channels=[24, 48, 96, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=96),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
