# Ours: nobody has published UperNet on these weights. Drop path and lr
# are those of upernet/convnext_xl_in22k_640_160k_ade20k.py.
_base_ = ['../_base_/upernet.py', '../_base_/ade20k_160k.py', '../_base_/clip_statistics.py']
weights = 'timm:convnext_xxlarge.clip_laion2b_soup'
model = dict(
    data_preprocessor=dict(**_base_.clip_statistics),
    backbone=dict(arch='xxlarge', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[384, 768, 1536, 3072]),
    auxiliary_head=dict(in_channels=1536))
optim_wrapper = dict(optimizer=dict(lr=8e-5))
