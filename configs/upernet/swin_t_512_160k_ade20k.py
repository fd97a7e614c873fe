_base_ = ['../_base_/upernet.py', '../_base_/ade20k_160k_swin.py']
weights = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth'
model = dict(
    backbone=dict(
        _delete_=True, type='mmseg.SwinTransformer', embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24],
        drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(_delete_=True, mode='whole'))
