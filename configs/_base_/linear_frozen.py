# A linear classifier of pixels on the last stage of a frozen ConvNeXt: BatchNorm and a 1x1 convolution, as DINOv3 and
# EUPE evaluate (eupe/eval/segmentation/configs/config-ade20k-linear-training.yaml). Sliding window of 512, stride 341.
_base_ = 'upernet.py'
model = dict(
    backbone=dict(out_indices=[3], frozen_stages=4, drop_path_rate=0., layer_scale_init_value=1e-6),
    # Their final norm is left out: a scale and shift of channels before a BatchNorm change nothing.
    neck=dict(type='FeatureBatchNorm', in_channels=768),
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=768,
        channels=768,
        in_index=0,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None)
