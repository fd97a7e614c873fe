# COCO as in coco_3x.py with the optimizer of Swin's authors: one learning rate for all layers.
_base_ = ['coco_3x.py', 'swin_no_decay.py']
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True, **_base_.swin_no_decay))
