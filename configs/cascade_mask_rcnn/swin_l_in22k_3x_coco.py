# No config was ever released for this row of the paper: Swin-B's recipe with the backbone exchanged.
_base_ = 'swin_b_3x_coco.py'
weights = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_large_patch4_window7_224_22k.pth'
model = dict(
    backbone=dict(embed_dims=192, num_heads=[6, 12, 24, 48], init_cfg=dict(checkpoint=weights)),
    neck=dict(in_channels=[192, 384, 768, 1536]))
