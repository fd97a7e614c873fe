"""What tests on augmented images change in a config."""

import pytest
from helpers import ROOT
from mmengine.config import Config

from convnext_dense.errors import UserError
from convnext_dense.run.train_test import has_masks, use_test_time_augmentation

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
UPERNET_T = ROOT / 'configs/upernet/convnext_t_512_160k_ade20k.py'
MASK_RCNN_T = ROOT / 'configs/mask_rcnn/convnext_t_3x_coco.py'


def test_official_augmentation_scales_the_test_scale():
    cfg = Config.fromfile(UPERNET_T)
    use_test_time_augmentation(cfg)
    load, augment = cfg.test_dataloader.dataset.pipeline
    resize, flip, annotations, pack = augment.transforms
    assert [step.scale for step in resize] == [
        (1024, 256),
        (1536, 384),
        (2048, 512),
        (2560, 640),
        (3072, 768),
        (3584, 896),
    ]
    assert all(step.keep_ratio for step in resize)
    assert [(step.type, step.prob, step.direction) for step in flip] == [
        ('RandomFlip', 0.0, 'horizontal'),
        ('RandomFlip', 1.0, 'horizontal'),
    ]
    assert annotations == [dict(type='LoadAnnotations', reduce_zero_label=True)]
    assert cfg.model.type == 'SegTTAModel' and cfg.model.module.test_cfg == dict(mode='whole')


def test_only_a_mask_head_makes_masks():
    """``mask_head=None`` and a data_preprocessor that pads masks do not."""
    cfg = Config.fromfile(MASK_RCNN_T)
    assert has_masks(cfg)
    with pytest.raises(UserError, match='--tta: mmdet can merge boxes of augmented images, but not masks'):
        use_test_time_augmentation(cfg)
    cfg.model.roi_head.mask_head = None
    assert not has_masks(cfg)
    with pytest.raises(UserError, match='--tta: the config defines no tta_model and tta_pipeline'):
        use_test_time_augmentation(cfg)
    cfg.tta_model, cfg.tta_pipeline = dict(type='DetTTAModel'), [dict(type='LoadImageFromFile')]
    use_test_time_augmentation(cfg)
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.type == 'MaskRCNN'
    assert cfg.test_dataloader.dataset.pipeline == [dict(type='LoadImageFromFile')]


def test_mask_heads_of_a_cascade_count():
    cfg = Config(dict(model=dict(roi_head=dict(stages=[dict(mask_head=None), dict(mask_head=dict(type='A'))]))))
    assert has_masks(cfg)
    cfg.model.roi_head.stages[1].mask_head = None
    assert not has_masks(cfg)
