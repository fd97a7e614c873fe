# Ours: nobody has published Mask2Former on ConvNeXt-T. (Swin-T with these settings: 47.7 mIoU in the model zoo of
# Mask2Former's authors.) Not trained here: what was run is two iterations at tiny width.
_base_ = '../_base_/mask2former_160k.py'
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224_ema.pth'
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[96, 192, 384, 768]))
