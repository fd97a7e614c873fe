# Published: 48.9 mIoU, frozen (arXiv 2603.22387, Table 6).
_base_ = ['../_base_/linear_frozen.py', '../_base_/ade20k_linear_40k.py']
weights = 'https://huggingface.co/facebook/EUPE-ConvNeXt-B/resolve/main/EUPE-ConvNeXt-B.pt'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=1024),
    decode_head=dict(in_channels=1024, channels=1024))
