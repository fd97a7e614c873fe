# Ours, not in the paper: 12 epochs with half the drop path, which is what Swin's authors change from 3x to 1x.
_base_ = 'convnext_t_3x_coco.py'
model = dict(backbone=dict(drop_path_rate=0.2))
train_cfg = dict(max_epochs=12)
warm_up, steps = _base_.param_scheduler
param_scheduler = [warm_up, dict(steps, end=12, milestones=[8, 11])]
