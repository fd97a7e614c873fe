"""Kind 19, F18, F20 to F22: options, environment, names of arguments, settings of a run, and weights for a swap."""

import inspect
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import run_forked
from mmengine.config import Config
from toy_parts import ToyNet

from convnext_dense.errors import UserError
from convnext_dense.models.convnext import OFFICIAL_NAMES, ConvNeXt
from convnext_dense.run.config_keys import check_keys, parameters
from convnext_dense.run.options import errors_as_sentences, read_config
from convnext_dense.run.settings import settle
from convnext_dense.swap.weights import arguments_for
from convnext_dense.weights.fit import as_written, fit

MICRO = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
ARGUMENTS = [name for name in inspect.signature(ConvNeXt).parameters if name != 'self']


@pytest.mark.parametrize('name', [*ARGUMENTS, *OFFICIAL_NAMES])
def test_misspelt_argument_gets_the_nearest(name):
    """Without its last letter but one, for every argument."""
    wrong = name[:-2] + name[-1]
    with pytest.raises(UserError, match=f'^ConvNeXt has no argument {wrong}, the nearest that it has is ') as error:
        ConvNeXt(**{wrong: 1})
    assert str(error.value).split('nearest that it has is ')[1].startswith(name)


def test_official_names():
    ours = ConvNeXt(MICRO, in_channels=4)
    official = ConvNeXt(in_chans=4, depths=MICRO['depths'], dims=MICRO['channels'])
    assert [value.shape for value in official.parameters()] == [value.shape for value in ours.parameters()]
    for both in (dict(arch='tiny', dims=[1]), dict(in_channels=3, in_chans=3)):
        with pytest.raises(UserError, match='which mean the same: give (arch|in_channels) alone'):
            ConvNeXt(**both)
    with pytest.raises(UserError, match='nearest that it has is drop_path_rate: correct'):
        ConvNeXt(drop_path=0.1)


KNOWN = (
    'model.type',
    'model.bad_at',
    'train_dataloader.pin_memory',
    'train_cfg.max_epochs',
    'train_cfg.val_begin',
    'optim_wrapper.optimizer.eps',
    'optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult',
    'default_hooks.checkpoint.save_best',
    'default_hooks.logger.ignore_last',
    'param_scheduler.0.end_factor',
    'randomness.deterministic',
    'env_cfg.cudnn_benchmark',
    'auto_scale_lr.enable',
    'custom_hooks',
    'compile',
    'torchvision_roi_align',
    'find_unused_parameters',
    'load_from',
    'test_cfg.fp16',
)
UNKNOWN = {
    'modle.bad_at': 'model',
    'model.bad_ta': 'model.bad_at',
    'train_dataloader.num_worker': 'train_dataloader.num_workers',
    'train_cfg.max_epoch': 'train_cfg.max_epochs',
    'optim_wrapper.optimizer.lrr': 'optim_wrapper.optimizer.lr',
    'optim_wrapper.clip_gard': 'optim_wrapper.clip_grad',
    'default_hooks.checkpoint.max_keep_ckpt': 'default_hooks.checkpoint.max_keep_ckpts',
    'default_hooks.chekpoint.interval': 'default_hooks.checkpoint',
    'param_scheduler.0.start_facto': 'param_scheduler.0.start_factor',
    'randomness.sead': 'randomness.seed',
    'env_cfg.cudnn': 'env_cfg.cudnn_benchmark',
    'load_form': 'load_from',
    'allow_statistics': '',
}
TOY = Path(__file__).with_name('toy.py')


@pytest.mark.parametrize('key', KNOWN)
def test_known_keys(key):
    assert check_keys(Config.fromfile(TOY), [key]) == []


@pytest.mark.parametrize('key', UNKNOWN)
def test_unknown_keys_are_errors(key):
    with pytest.raises(UserError, match='is neither in the config nor an argument') as error:
        read_config(str(TOY), [f'{key}=1'])
    assert f'the nearest that is known is {UNKNOWN[key]}' in str(error.value)
    value = read_config(str(TOY), [f'+{key}=1'])._cfg_dict
    for name in key.split('.'):
        value = value[int(name) if isinstance(value, list) else name]
    assert value == 1


def test_key_that_nothing_can_judge_is_a_line(capsys):
    """What CheckpointHook does not take goes on to a function of a storage."""
    cfg = read_config(str(TOY), ['default_hooks.checkpoint.brand=1'])
    assert cfg.default_hooks.checkpoint.brand == 1
    assert 'brand is new in default_hooks.checkpoint, where nothing says which keys are read' in capsys.readouterr().out


@pytest.mark.parametrize(
    'option, sentence',
    [
        ('param_scheduler.3.begin=1', 'param_scheduler is a list of 1, 3 is not one of its positions'),
        ('param_scheduler.x.begin=1', 'x is not one of its positions'),
        ('randomness.seed.more=1', 'randomness.seed is 0 in the config, which has no keys'),
    ],
)
def test_keys_below_lists_and_values(option, sentence):
    with pytest.raises(UserError, match=sentence):
        read_config(str(TOY), [option])


def test_parameters_go_through_keywords_to_the_bases():
    class Base:
        def __init__(self, size, **kwargs):
            self.more = kwargs.pop('depth', 3)

    class Heir(Base):
        def __init__(self, colour, **kwargs):
            super().__init__(**kwargs)

    assert parameters(Heir) == ({'colour', 'size', 'depth'}, False)
    assert parameters(ToyNet) == ({'bad_at', 'bad_value', 'bad_feature', 'data_preprocessor'}, True)
    assert {'dims', 'depths', 'in_chans', 'arch'} <= parameters(ConvNeXt)[0] and parameters(ConvNeXt)[1]


TEXTS = (
    "it's",
    'a"b',
    'back\\slash',
    'new\nline',
    '{{curly}}',
    'end\\',
    "'''",
    '\\1',
    'plain/path with spaces',
    '𝔘nicode',
)


@pytest.mark.parametrize('text', TEXTS)
def test_data_folder_may_have_any_name(text, tmp_path, monkeypatch):
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', text)
    (tmp_path / 'config.py').write_text("data_root = '{{$CONVNEXT_DENSE_DATA:data}}/coco/'\nx = [dict(y=data_root)]\n")
    cfg = read_config(str(tmp_path / 'config.py'))
    assert cfg.data_root == f'{text}/coco/' and cfg.x[0].y == f'{text}/coco/'
    assert os.environ['CONVNEXT_DENSE_DATA'] == text


def test_empty_variables(tmp_path, monkeypatch):
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', '')
    (tmp_path / 'config.py').write_text("data_root = '{{$CONVNEXT_DENSE_DATA:data}}/coco/'\n")
    assert read_config(str(tmp_path / 'config.py')).data_root == 'data/coco/'
    (tmp_path / 'config.py').write_text("data_root = '{{$NEVER_SET:}}'\n")
    with pytest.raises(UserError, match='needs an environment variable: `NEVER_SET`'):
        read_config(str(tmp_path / 'config.py'))


@pytest.mark.parametrize(
    'error, sentence',
    [
        (ModuleNotFoundError('x', name='pycocotools.coco'), 'the package pycocotools is needed here and not installed'),
        (PermissionError(13, 'Permission denied', '/home/x'), '/home/x: Permission denied: permit it, or give another'),
        (OSError(30, 'Read-only file system', '/home/x'), '/home/x cannot be written (Read-only file system): give a'),
        (OSError(28, 'No space left on device'), 'a file cannot be written (No space left on device): free space'),
        (RuntimeError('[enforce fail] PytorchStreamWriter failed writing file'), 'free space there'),
    ],
)
def test_errors_of_the_system_are_sentences(error, sentence):
    with pytest.raises(SystemExit) as stop, errors_as_sentences():
        raise error
    assert stop.value.code.startswith('error: ') and sentence in stop.value.code


def test_numbers_as_text(train, tmp_path):
    config = tmp_path / 'text.py'
    config.write_text(
        f"_base_ = '{TOY}'\noptim_wrapper = dict(optimizer=dict(lr='1e-2'))\ntrain_cfg = dict(max_epochs=1)\n"
    )
    outcome = train(config=config)
    assert outcome.status == 0, outcome.text
    assert "lr is the text '1e-2' in the config, taken as the number 0.01" in outcome.text
    config.write_text(f"_base_ = '{TOY}'\noptim_wrapper = dict(optimizer=dict(lr='fast'))\n")
    outcome = train(config=config, work='other')
    assert outcome.status == 1 and "lr='fast' is not a number: write one, such as lr=1e-4" in outcome.error


def test_no_workers(train):
    change = [
        'train_dataloader.persistent_workers=True',
        'train_dataloader.prefetch_factor=2',
        'train_cfg.max_epochs=1',
    ]
    outcome = train(change=change)
    assert outcome.status == 0, outcome.text
    assert 'train_dataloader: num_workers is 0, so persistent_workers is left out' in outcome.text


def detector(**backbone):
    return Config(
        dict(
            model=dict(
                backbone=dict(type='ConvNeXt', **backbone),
                neck=dict(type='FPN', in_channels=[96, 192, 384, 768], start_level=1),
                data_preprocessor=dict(type='DetDataPreprocessor', mean=[1, 2, 3], std=[1, 1, 1]),
            )
        )
    )


def test_channels_and_means():
    assert settle(detector(), 'none') == [] and settle(detector(in_channels=3), 'none') == []
    for name in ('in_channels', 'in_chans'):
        with pytest.raises(UserError, match='a mean of 3 values, .* have 4 channels .*: set its mean=None'):
            settle(detector(**{name: 4}), 'none')
    segmentor = detector(in_channels=4)
    segmentor.model.data_preprocessor.type = 'SegDataPreProcessor'
    with pytest.raises(UserError, match='give mean and std of 4 values'):
        settle(segmentor, 'none')
    segmentor.model.data_preprocessor.mean = [1, 2, 3, 4]
    assert settle(segmentor, 'none') == []


def test_features_that_an_fpn_ignores_in_several_processes():
    sentence = r'out_indices=\[1, 2, 3\], model.neck.in_channels=\[192, 384, 768\] and model.neck.start_level=0'
    with pytest.raises(UserError, match=sentence):
        settle(detector(), 'pytorch')
    cfg = detector()
    cfg.find_unused_parameters = True
    assert settle(cfg, 'pytorch') == []


def test_one_image_with_batch_norm(train):
    def pool():
        original = ToyNet.forward
        ToyNet.forward = lambda self, inputs, *rest, **more: original(self, inputs[:, :, :3, :3], *rest, **more)

    outcome = train(change=['train_dataloader.batch_size=1'], inject=pool)
    assert outcome.status == 1 and 'set train_dataloader.batch_size=2 or more' in outcome.error


VARIED = dict(
    overlap=dict(stem='overlap'),
    overlap_act=dict(stem='overlap_act'),
    rms=dict(norm_cfg=dict(type='RMSNorm')),
    no_bias=dict(conv_bias=False),
    kernel=dict(kernel_size=5),
    grn=dict(use_grn=True, layer_scale_init_value=0),
    no_scale=dict(layer_scale_init_value=0),
    patch=dict(stem_patch_size=2),
)


@pytest.mark.parametrize('name', VARIED)
def test_advice_for_files_of_another_architecture_is_true(name):
    """What it says to set is what the file was made with; both ways."""
    plain, varied = ConvNeXt(MICRO), ConvNeXt(MICRO, **VARIED[name])
    with pytest.raises(UserError) as error:
        fit(plain.wanted_weights(), varied.state_dict())
    for key in VARIED[name]:
        assert as_written({key: VARIED[name][key]}) in str(error.value).split('; set ')[1].split(' in the backbone')[0]
    assert fit(ConvNeXt(MICRO, **VARIED[name]).wanted_weights(), varied.state_dict())
    if name == 'kernel':
        return  # the other way kernels are interpolated
    with pytest.raises(UserError) as error:
        fit(varied.wanted_weights(), plain.state_dict())
    assert 'damaged' not in str(error.value)
    to_set, to_have = str(error.value).split('; set ')[1].split(' in the backbone, or give a file for ')
    official = dict(stem='patch', conv_bias=True, use_grn=False, layer_scale_init_value=1.0, stem_patch_size=4)
    for key in VARIED[name]:
        assert as_written({key: official.get(key, dict(type='LN2d'))}) in to_set
        assert as_written({key: VARIED[name][key]}) in to_have


@pytest.mark.parametrize(
    'weights, arch, found',
    [
        ('convnext_base_22k_224', None, dict(arch='base')),
        ('convnext_base_22k_224', 'base', dict(arch='base')),
        ('convnextv2_tiny_1k_224_ema', None, dict(arch='tiny', use_grn=True, layer_scale_init_value=0)),
        ('timm:convnext_small.fb_in22k', None, dict(arch='small')),
        ('timm:convnext_atto_ols.a2_in1k', None, dict(arch='atto_ols')),
        ('hf-hub:facebook/convnextv2-nano-1k-224', None, dict(arch='nano', use_grn=True, layer_scale_init_value=0)),
        ('https://example.org/own.pth', None, {}),
        ('convnext_base_22k_224', 'tiny', "belongs to arch='base', found arch='tiny': leave out --arch"),
        ('convnext_tinny_1k_224', None, 'did you mean the official file convnext_tiny_1k_224'),
        ('gone.pth', None, 'there is no weight file gone.pth'),
    ],
)
def test_swap_knows_weights_by_their_name(weights, arch, found):
    if isinstance(found, str):
        with pytest.raises(UserError) as error:
            arguments_for(weights, arch)
        assert found in str(error.value)
    else:
        arguments, notes = arguments_for(weights, arch)
        assert arguments == found and bool(notes) == (not found)


@pytest.mark.parametrize('made', [dict(arch='atto'), dict(arch='atto_ols'), dict(arch=MICRO, **VARIED['grn'])], ids=str)
def test_swap_looks_into_files(made, tmp_path):
    torch.save(ConvNeXt(**made).state_dict(), tmp_path / 'own.pth')
    arguments, notes = arguments_for(str(tmp_path / 'own.pth'), None)
    again = ConvNeXt(**arguments)
    assert notes == [] and fit(again.wanted_weights(), ConvNeXt(**made).state_dict())
    assert arguments['arch'] == dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32)) or arguments['arch'] == made['arch']


NEW_STYLE = """from mmengine.config import read_base
with read_base():
    from mmdet.configs.retinanet.retinanet_r50_fpn_1x_coco import *
"""


def test_swap_of_a_new_style_config(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'lazy.py').write_text(NEW_STYLE)
    outcome = run_forked('swap_backbone', tmp_path / 'lazy.py', '-o', tmp_path / 'out.py', log=tmp_path / 'log.txt')
    assert outcome.status == 1 and 'is a new-style config, whose types are Python objects' in outcome.error
    assert not (tmp_path / 'out.py').exists()


def test_swap_says_what_it_leaves_out_and_makes_folders(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'own.py').write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\nmodel = dict(backbone=dict(with_cp=True))\n"
    )
    out = tmp_path / 'new/folder/out.py'
    outcome = run_forked('swap_backbone', tmp_path / 'own.py', '-o', out, log=tmp_path / 'log.txt')
    assert outcome.status == 0, outcome.text
    assert 'frozen_stages=1 of backbone was for the old backbone' in outcome.text
    assert 'model.backbone.frozen_stages=1 freezes as many' in outcome.text
    assert Config.fromfile(out).model.backbone.with_cp


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP'])
def test_predictions_survive_a_signal(name, tmp_path):
    import numpy as np

    from convnext_dense.results import Detections, PredictionFolder, write_predictions

    def predict(path):
        if path.name == 'b.jpg':
            os.kill(os.getpid(), signal.Signals[name])
            time.sleep(10)
        detections = Detections(np.zeros((1, 4)), np.ones(1), np.zeros(1, int), ['x'], (6, 8))
        return np.zeros((6, 8, 3), np.uint8), detections

    with pytest.raises(SystemExit) as stop:
        write_predictions([(f, Path(f)) for f in ('a.jpg', 'b.jpg')], PredictionFolder(tmp_path / 'out'), predict)
    assert stop.value.code == 128 + signal.Signals[name]
    assert len(json.loads((tmp_path / 'out/predictions.json').read_text())['images']) == 1
