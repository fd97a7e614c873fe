_base_ = ['../_base_/cascade_mask_rcnn.py', '../_base_/coco_3x_swin.py']
weights = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224.pth'
model = dict(
    backbone=dict(
        _delete_=True, type='mmdet.SwinTransformer', embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32],
        drop_path_rate=0.3, convert_weights=True, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
