# ADE20K for a linear classifier, 40k iterations on 8 GPUs x 2 images: AdamW 1e-3, weight decay 1e-3, cosine after a
# warm-up of 1500 iterations from 1e-6 (eupe/eval/segmentation/configs/config-ade20k-linear-training.yaml, as DINOv3).
_base_ = 'ade20k_160k.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=1500, end=40000),
]
train_cfg = dict(max_iters=40000, val_interval=5000)
optim_wrapper = dict(
    type='OptimWrapper', paramwise_cfg=dict(decay_rate=1.0), optimizer=dict(lr=1e-3, weight_decay=1e-3))
sync_bn = 'torch'
