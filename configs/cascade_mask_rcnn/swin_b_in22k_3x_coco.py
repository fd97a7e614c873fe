# No config was ever released for this row of the paper:
# Swin-B's recipe with the weights exchanged.
_base_ = 'swin_b_3x_coco.py'
weights = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224_22k.pth'
model = dict(backbone=dict(init_cfg=dict(checkpoint=weights)))
