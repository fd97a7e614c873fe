# ADE20K as in ade20k_640_160k.py with the optimizer of Swin's authors: one learning rate, no mixed precision.
_base_ = ['ade20k_640_160k.py', 'swin_no_decay.py']
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, **_base_.swin_no_decay),
    optimizer=dict(lr=6e-5, weight_decay=0.01))
