# The toy, counted in iterations.
_base_ = ['toy.py']
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=14, val_interval=5)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5))
