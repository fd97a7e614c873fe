# mmdetection's projects/ConvNeXt-V2: drop path 0.4, decay 0.95. Published: 52.9 box AP, 46.6 mask AP (Table 6).
_base_ = ['../_base_/mask_rcnn_v2.py', '../_base_/coco_lsj_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_base_1k_224_fcmae.pt'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
