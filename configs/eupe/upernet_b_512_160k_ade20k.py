# Ours: nobody has published UperNet on these weights. Drop path and lr
# are those of upernet/convnext_b_512_160k_ade20k.py.
_base_ = ['../_base_/upernet.py', '../_base_/ade20k_160k.py']
weights = 'https://huggingface.co/facebook/EUPE-ConvNeXt-B/resolve/main/EUPE-ConvNeXt-B.pt'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
