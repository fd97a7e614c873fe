# Ours, inside the sweeps of appendix A.3 (decay 0.9 or 0.95, drop path 0.2 to 0.5): values per size are not published.
# Published: 55.7 box AP, 48.9 mask AP (arXiv 2301.00808, Table 6).
_base_ = ['../_base_/mask_rcnn_v2.py', '../_base_/coco_lsj_3x.py']
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_huge_1k_224_fcmae.pt'
model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.5, init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(in_channels=[352, 704, 1408, 2816]))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
