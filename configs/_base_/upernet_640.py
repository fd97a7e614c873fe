# UperNet on crops of 640; the stride of the sliding window is two thirds of the crop.
_base_ = 'upernet.py'
model = dict(
    data_preprocessor=dict(size=(640, 640)), test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(426, 426)))
