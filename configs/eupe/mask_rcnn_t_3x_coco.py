# Ours: nobody has published Mask R-CNN on these weights. Drop path, decay
# and lr are those of mask_rcnn/convnext_t_3x_coco.py.
_base_ = ['../_base_/mask_rcnn.py', '../_base_/coco_3x.py']
weights = 'https://huggingface.co/facebook/EUPE-ConvNeXt-T/resolve/main/EUPE-ConvNeXt-T.pt'
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
