# Published: 51.4 box AP after 12 epochs from ImageNet-1K weights (detrex, projects/dino), of which it does not name the
# file. Not trained here: what was run is two iterations at tiny width.
_base_ = '../_base_/dino_4scale_12e.py'
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224_ema.pth'
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[192, 384, 768]))
