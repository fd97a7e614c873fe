# Ours, inside the sweeps of appendix A.4 (lr 1e-4 to 3e-4, decay 0.8 or 0.9, drop path 0.1 to 0.4): values per size are
# not published. Published: 52.1 mIoU, multi-scale (arXiv 2301.00808, Table 7).
_base_ = ['../_base_/upernet_v2.py', '../_base_/ade20k_160k.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_base_1k_224_ema.pt'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.9))
