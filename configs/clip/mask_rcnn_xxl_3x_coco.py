# Ours: nobody has published Mask R-CNN on these weights. Drop path, decay
# and lr are those of cascade_mask_rcnn/convnext_xl_in22k_3x_coco.py.
_base_ = ['../_base_/mask_rcnn.py', '../_base_/coco_3x.py', '../_base_/clip_statistics.py']
weights = 'timm:convnext_xxlarge.clip_laion2b_soup'
model = dict(
    data_preprocessor=dict(**_base_.clip_statistics),
    backbone=dict(arch='xxlarge', drop_path_rate=0.8, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[384, 768, 1536, 3072]))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
