# Published: 46.3 mIoU, frozen (arXiv 2508.10104).
_base_ = ['../_base_/linear_frozen.py', '../_base_/ade20k_linear_40k.py']
weights = 'hf-hub:facebook/dinov3-convnext-base-pretrain-lvd1689m'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=1024),
    decode_head=dict(in_channels=1024, channels=1024))
