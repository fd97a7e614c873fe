# UperNet with a ConvNeXt V2 as in upernet_v2.py, on crops of 640; the sliding window moves by two thirds of the crop.
_base_ = 'upernet_v2.py'
model = dict(
    data_preprocessor=dict(size=(640, 640)), test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(426, 426)))
