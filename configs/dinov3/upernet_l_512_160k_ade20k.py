# Ours: nobody has published UperNet on these weights. Drop path and lr
# are those of upernet/convnext_l_in22k_640_160k_ade20k.py.
_base_ = ['../_base_/upernet.py', '../_base_/ade20k_160k.py']
weights = 'hf-hub:facebook/dinov3-convnext-large-pretrain-lvd1689m'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
