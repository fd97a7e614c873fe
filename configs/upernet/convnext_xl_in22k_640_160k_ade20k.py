_base_ = ['../_base_/upernet_640.py', '../_base_/ade20k_640_160k.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_xlarge_22k_224.pth'
model = dict(
    backbone=dict(arch='xlarge', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024))
# Officially without mixed precision.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=8e-5))
