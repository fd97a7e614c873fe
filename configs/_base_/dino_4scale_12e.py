# DINO of 4 scales on COCO, 12 epochs, with the settings of detrex (projects/dino). What is not here is equal in mmdet's
# config: 8 x 2 images, AdamW 1e-4 with a tenth of it for the backbone, weight decay 1e-4, gradients clipped to 0.1, lr
# divided by 10 at epoch 11. The backbone and the neck are what tools/swap_backbone.py writes for mmdet's config.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
custom_hooks = [dict(type='ConvNeXtLoadHook')]
# $CONVNEXT_DENSE_DATA is the folder that holds coco/ (and ade/); --cfg-options data_root=... moves this one alone.
data_root = '{{$CONVNEXT_DENSE_DATA:data}}/coco/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    # configs/models/dino_convnext.py: the last three stages, drop path 0, layer scale 1.
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch='tiny',
        out_indices=(1, 2, 3),
        drop_path_rate=0.,
        layer_scale_init_value=1.),
    neck=dict(in_channels=[192, 384, 768]),
    # configs/models/dino_r50.py: temperature 10000 and offset -0.5 (mmdet, as DINO's authors: 20 and 0), label noise
    # 0.2 (mmdet: 0.5).
    positional_encoding=dict(temperature=10000, offset=-0.5),
    dn_cfg=dict(label_noise_scale=0.2))
# configs/common/optim.py: no weight decay on norms. Its rule knows torch's norms, not those of its ConvNeXt: as here,
# where the key `backbone` of mmdet's config takes the place of the rule.
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.999)), paramwise_cfg=dict(norm_decay_mult=0.))
