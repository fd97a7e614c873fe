# UperNet with a ConvNeXt-T and an auxiliary FCN head on stage 3, 150 classes, sliding-window test on crops of 512.
# Importing convnext_dense tells mmengine where the OneDL mmseg is, in tools that do not import it before.
_base_ = __import__('convnext_dense') and 'mmseg::_base_/models/upernet_swin.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
custom_hooks = [dict(type='ConvNeXtLoadHook')]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type='ConvNeXt', arch='tiny', drop_path_rate=0.4, layer_scale_init_value=1.0),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
