# Ours: nobody has published UperNet on these weights. Drop path and lr
# are those of upernet/convnext_t_512_160k_ade20k.py.
_base_ = ['../_base_/upernet.py', '../_base_/ade20k_160k.py']
weights = 'hf-hub:facebook/dinov3-convnext-tiny-pretrain-lvd1689m'
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
