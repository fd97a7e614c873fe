# A smaller Mask R-CNN than the demo's; weights.pth is its last epoch in float16:
# python -m convnext_dense.sample_data data/digits; python tools/train.py tests/reference/digits_mask_rcnn/small.py
# Seven minutes on two busy cores; box AP 0.529, mask AP 0.531 on the 250 val images.
_base_ = ['../../../configs/mask_rcnn/convnext_digits.py']
model = dict(
    backbone=dict(arch=dict(depths=[1, 1, 2, 1], channels=[16, 32, 64, 96])),
    neck=dict(in_channels=[16, 32, 64, 96], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
