# Published: 46.8 mIoU, frozen (arXiv 2603.22387, Table 6).
_base_ = ['../_base_/linear_frozen.py', '../_base_/ade20k_linear_40k.py']
weights = 'https://huggingface.co/facebook/EUPE-ConvNeXt-S/resolve/main/EUPE-ConvNeXt-S.pt'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=768),
    decode_head=dict(in_channels=768, channels=768))
