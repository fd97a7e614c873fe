# Published: 44.8 mIoU, frozen (arXiv 2508.10104).
_base_ = ['../_base_/linear_frozen.py', '../_base_/ade20k_linear_40k.py']
weights = 'hf-hub:facebook/dinov3-convnext-small-pretrain-lvd1689m'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=768),
    decode_head=dict(in_channels=768, channels=768))
