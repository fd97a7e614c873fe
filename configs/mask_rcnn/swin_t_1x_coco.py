# The 1x schedule of Swin's authors, with half the drop path.
_base_ = 'swin_t_3x_coco.py'
model = dict(backbone=dict(drop_path_rate=0.1))
train_cfg = dict(max_epochs=12)
warm_up, steps = _base_.param_scheduler
param_scheduler = [warm_up, dict(steps, end=12, milestones=[8, 11])]
