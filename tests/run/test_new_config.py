"""Generated configs: their lines, their schedules, and a step of training."""

import importlib
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from new_config_data import CLASSES, write_label_maps, write_objects

from convnext_dense.dataset.formats import read_labels
from convnext_dense.errors import UserError
from convnext_dense.run.new_config.schedule import schedule_of
from convnext_dense.run.new_config.write import new_config
from convnext_dense.run.options import nested_dicts

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

ZOO = {
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': False,
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': False,
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': False,
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': False,
    'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py': False,
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py': False,
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': False,
    'mmdet::solo/solo_r50_fpn_1x_coco.py': False,
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py': True,
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': True,
}
# Fewer proposals: the numbers that cost time.
SMALL = dict(num=16, nms_pre=50, max_per_img=20)


@pytest.fixture(scope='module')
def objects(tmp_path_factory):
    return write_objects(tmp_path_factory.mktemp('objects'))


@pytest.fixture(scope='module')
def boxes(tmp_path_factory):
    return write_objects(tmp_path_factory.mktemp('boxes'), masks=False)


@pytest.fixture(scope='module')
def label_maps(tmp_path_factory):
    return write_label_maps(tmp_path_factory.mktemp('maps'))


def train_a_step(cfg: Config) -> dict[str, float]:
    """One step on one batch of the config's own training data; its losses."""
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for part in nested_dicts(cfg.model):
            if part.get('type') in ('SyncBN', 'MMSyncBN'):
                part['type'] = 'BN'
            part.update({key: size for key, size in SMALL.items() if key in part})
        loader = cfg.train_dataloader
        loader.update(num_workers=0, persistent_workers=False)
        loader.pop('prefetch_factor', None)
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
        MessageHub.get_current_instance().update_info('iter', 0)  # YOLOX resizes its batches by it
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).train()
        data = model.data_preprocessor(batch, training=True)
        loss, losses = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        assert len(DATASETS.build(cfg.val_dataloader.dataset)) == 2
    assert torch.isfinite(loss)
    gradients = [parameter.grad for name, parameter in model.named_parameters() if 'backbone' in name]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    return losses


def generate(data, folder, **options) -> Config:
    out = folder / 'config.py'
    new_config(data, arch='atto', weights='none', out=out, **options)
    lines = out.read_text().splitlines()
    assert len(lines) <= 25, lines
    return Config.fromfile(out)


def counts_of_classes(cfg: Config) -> set[int]:
    keys = ('num_classes', 'num_things_classes')
    return {part[key] for part in nested_dicts(cfg.model) for key in keys if key in part}


@pytest.mark.parametrize('recipe', ['mask_rcnn', 'cascade_mask_rcnn', 'faster_rcnn'])
@pytest.mark.parametrize('kind', ['objects', 'boxes'])
def test_recipes_of_detectors(recipe, kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    cfg = generate(data, tmp_path, recipe=recipe)
    assert counts_of_classes(cfg) == {3}
    masks = kind == 'objects' and recipe != 'faster_rcnn'
    assert (cfg.model.roi_head.get('mask_head') is not None) == masks
    assert cfg.val_evaluator.metric == (['bbox', 'segm'] if masks else 'bbox')
    assert cfg.train_dataloader.dataset.metainfo.classes == tuple(CLASSES)
    assert cfg.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=5)
    assert [hook.type for hook in cfg.custom_hooks] == ['ConvNeXtLoadHook', 'EMAHook']
    assert cfg.default_hooks.checkpoint.save_best == ('coco/segm_mAP' if masks else 'coco/bbox_mAP')
    if kind == 'objects' or recipe == 'faster_rcnn':
        losses = train_a_step(cfg)
        assert any('loss_mask' in name for name in losses) == masks


def test_upernet(label_maps, tmp_path):
    cfg = generate(label_maps, tmp_path, recipe='upernet')
    assert counts_of_classes(cfg) == {2} and cfg.model.backbone.arch == 'atto'
    assert cfg.crop == (64, 64) and cfg.model.data_preprocessor.size == (64, 64)
    assert cfg.train_cfg.max_iters == 128 * 4 // 2
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(train_a_step(cfg))


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ZOO)
def test_zoo(recipe, objects, label_maps, tmp_path):
    cfg = generate(label_maps if ZOO[recipe] else objects, tmp_path, recipe=recipe)
    num_classes = 2 if ZOO[recipe] else 3
    assert counts_of_classes(cfg) == {num_classes}
    assert cfg.model.backbone.type == 'ConvNeXt' and cfg.model.backbone.arch == 'atto'
    assert any('loss' in name for name in train_a_step(cfg))


@pytest.mark.slow
@pytest.mark.parametrize(
    'recipe', ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 'mmdet::solo/solo_r50_fpn_1x_coco.py']
)
def test_models_of_masks_refuse_boxes(recipe, boxes, tmp_path):
    with pytest.raises(UserError, match='needs outlines, but the data have only boxes'):
        generate(boxes, tmp_path, recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_dry_run_and_existing_files(objects, tmp_path, capsys):
    out = tmp_path / 'config.py'
    new_config(objects, arch='tiny', out=out, dry_run=True)
    text = capsys.readouterr().out
    assert not out.exists() and len(text.splitlines()) <= 25
    assert "__import__('convnext_dense').__path__[0] + '/.mim/configs/mask_rcnn/convnext_t_3x_coco.py'" in text
    assert 'backbone' not in text, 'arch and weights are those of the recipe'
    out.write_text('mine')
    with pytest.raises(UserError, match='exists: nothing was written'):
        new_config(objects, out=out)
    assert out.read_text() == 'mine'


def test_refusals(objects, label_maps, tmp_path):
    with pytest.raises(UserError, match='holds label maps, mask_rcnn does not learn from them: give --recipe upernet'):
        generate(label_maps, tmp_path)
    with pytest.raises(UserError, match='holds objects, upernet does not learn from them'):
        generate(objects, tmp_path, recipe='upernet')
    with pytest.raises(UserError, match='has neither the layout of COCO nor that of ADE20K'):
        generate(tmp_path, tmp_path)
    with pytest.raises(UserError, match="ConvNeXt has no arch 'tin'"):
        new_config(objects, arch='tin', out=tmp_path / 'x.py')
    with pytest.raises(UserError, match='--epochs 0: give at least 1'):
        new_config(objects, epochs=0, out=tmp_path / 'x.py')


@pytest.mark.parametrize(
    'images, batch, epochs, iterations, val_interval, warmup, milestones, rate, momentum',
    [
        (50, 2, 100, 2500, 5, 250, (75, 92), 1.25e-5, 0.004),
        (500, 2, 100, 25_000, 5, 500, (75, 92), 1.25e-5, 0.0004),
        (5_000, 16, 64, 19_968, 3, 500, (48, 59), 1e-4, 0.0005),
        (50_000, 16, 36, 112_500, 1, 500, (27, 33), 1e-4, 8.9e-05),
    ],
)
def test_schedule_of_a_detector(images, batch, epochs, iterations, val_interval, warmup, milestones, rate, momentum):
    found = schedule_of(images, batch, False, 1e-4, 16)
    assert (found.epochs, found.iterations, found.val_interval) == (epochs, iterations, val_interval)
    assert (found.warmup, found.milestones, found.learning_rate) == (warmup, milestones, rate)
    assert found.momentum == momentum


@pytest.mark.parametrize(
    'images, batch, iterations, rate',
    [(50, 2, 3200, 1.25e-5), (500, 4, 16_000, 2.5e-5), (5_000, 16, 40_000, 1e-4), (50_000, 16, 160_000, 1e-4)],
)
def test_schedule_of_a_segmentor(images, batch, iterations, rate):
    found = schedule_of(images, batch, True, 1e-4, 16)
    assert (found.iterations, found.val_interval, found.learning_rate) == (iterations, iterations // 20, rate)


def test_schedules_of_a_given_length():
    found = schedule_of(500, 2, False, 1e-4, 16, epochs=12)
    assert (found.epochs, found.iterations, found.val_interval, found.warmup) == (12, 3000, 1, 300)
    assert (found.milestones, found.momentum, found.source) == ((9, 11), 0.0033, 'by --epochs, 100 by the table')
    found = schedule_of(500, 4, True, 1e-4, 16, epochs=12)
    assert (found.epochs, found.iterations, found.val_interval, found.warmup) == (12, 1500, 75, 150)


@pytest.mark.parametrize(
    'kind, values, ends',
    [
        ('objects', [0.300, 0.301, 0.303, 0.304, 0.305, 0.306, 0.307, 0.308], None),
        ('objects', [0.300, 0.310, 0.310, 0.309, 0.310, 0.310, 0.305], 6),
        ('label_maps', [40.0, 40.1, 40.2, 40.3, 40.4, 40.5, 40.6, 40.7], None),
        ('label_maps', [40.0, 40.1, 40.1, 40.1, 40.1, 40.1, 40.1], 6),
    ],
)
def test_a_training_that_gains_a_tenth_of_a_point_goes_on(kind, values, ends, request, tmp_path):
    """mmengine's hook, with its own min_delta, ends what gains less than 10 points of AP."""
    recipe, metric = ('upernet', 'mIoU') if kind == 'label_maps' else ('mask_rcnn', 'coco/segm_mAP')
    new_config(request.getfixturevalue(kind), recipe=recipe, out=tmp_path / 'config.py')  # with the recipe's weights
    cfg = Config.fromfile(tmp_path / 'config.py')
    hook = HOOKS.build(next(hook for hook in cfg.custom_hooks if hook.type == 'EarlyStoppingHook'))
    loop = SimpleNamespace(stop_training=False)
    runner = SimpleNamespace(train_loop=loop, logger=logging.getLogger('test'))
    ended = None
    for number, value in enumerate(values):
        hook.after_val_epoch(runner, {metric: value})
        if loop.stop_training and ended is None:
            ended = number
    assert ended == ends


def test_layouts_are_read_back(objects):
    assert read_labels(objects).has_masks
