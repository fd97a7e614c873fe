# A training of seconds that needs no toolkit, for the real tools: tools/train.py tests/faults/toy.py
custom_imports = dict(imports=['convnext_dense', 'toy_parts'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(type='ToyNet', data_preprocessor=dict(type='ImgDataPreprocessor'))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dict(type='ToyImages')
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ToyImages', length=2),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ToyMetric')
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1))
randomness = dict(seed=0)
