# No config was ever released for this row of the paper: Swin-B's recipe on crops of 640, with the backbone exchanged.
_base_ = ['../_base_/upernet_640.py', '../_base_/ade20k_640_160k_swin.py']
weights = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_large_patch4_window7_224_22k_20220412-aeecf2aa.pth'
model = dict(
    test_cfg=dict(_delete_=True, mode='whole'),  # whole images, as Swin's authors test
    backbone=dict(
        _delete_=True, type='mmseg.SwinTransformer', embed_dims=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48],
        drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768))
