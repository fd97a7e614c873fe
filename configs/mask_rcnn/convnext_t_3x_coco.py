_base_ = ['../_base_/mask_rcnn.py', '../_base_/coco_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
model = dict(backbone=dict(drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
