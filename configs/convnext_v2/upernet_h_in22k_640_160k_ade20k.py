# Ours, inside the sweeps of appendix A.4, on crops of 640.
# Published: 57.0 mIoU, multi-scale (arXiv 2301.00808, Table 7).
_base_ = ['../_base_/upernet_v2_640.py', '../_base_/ade20k_640_160k.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_huge_22k_512_ema.pt'
model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[352, 704, 1408, 2816]),
    auxiliary_head=dict(in_channels=1408))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.9))
