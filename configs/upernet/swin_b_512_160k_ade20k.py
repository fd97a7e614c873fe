_base_ = ['../_base_/upernet.py', '../_base_/ade20k_160k_swin.py']
weights = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_base_patch4_window7_224_20220317-e9b98025.pth'
model = dict(
    backbone=dict(
        _delete_=True, type='mmseg.SwinTransformer', embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32],
        drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
    test_cfg=dict(_delete_=True, mode='whole'))
