"""The tools from data to metrics, on real (small) data; what they refuse, and how."""

import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, kill_all, start

mmdet = pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'
CASCADE_B = ROOT / 'configs/cascade_mask_rcnn/convnext_b_3x_coco.py'
UPERNET_T = ROOT / 'configs/upernet/convnext_t_512_160k_ade20k.py'
IN_PROCESS = tuple(
    f'{split}_dataloader.{option}'
    for split in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
)
ONE_EPOCH = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', *IN_PROCESS)
# An official recipe with another arch in it: the recipe's pipeline, heads and image sizes, in a minute on a CPU.
ATTO = ('model.backbone.init_cfg=None', 'model.backbone.arch=atto', 'model.neck.in_channels=[40,80,160,320]')


def test_mask_rcnn_trains_and_its_checkpoint_tests_alike(digits, tmp_path, tool):
    message, text = tool('train', MASK_RCNN, '--work-dir', tmp_path, '--cfg-options', *ONE_EPOCH, data=digits)
    assert message is None
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert 0 <= metrics['coco/bbox_mAP'] <= 1 and 'coco/segm_mAP_75' in metrics
    assert len(re.findall(r"^mmcv's operators are (?:provided|compiled): .*mmcv", text, re.M)) == 1
    table = text.split('\n\n')[-2].splitlines()
    assert table[0].split() == ['AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L']
    assert [line.split()[0] for line in table[1:]] == ['box', 'mask']
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    assert checkpoint.endswith('epoch_1.pth')
    message, _ = tool(
        'test',
        MASK_RCNN,
        checkpoint,
        '--work-dir',
        tmp_path / 'test',
        '--out',
        tmp_path / 'predictions.pkl',
        '--show-dir',
        tmp_path / 'drawn',
        '--cfg-options',
        *IN_PROCESS,
        data=digits,
    )
    assert message is None
    tested = json.loads((tmp_path / 'test/metrics.json').read_text())
    for key, value in metrics.items():
        if key.startswith('coco/'):
            assert tested[key] == value, key
    assert len(pickle.loads((tmp_path / 'predictions.pkl').read_bytes())) == 8
    assert len(list((tmp_path / 'drawn').iterdir())) == 8


def test_upernet_trains_and_tests_with_augmentation(digits, tmp_path, tool):
    quick = ('train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=4', *IN_PROCESS)
    message, text = tool('train', UPERNET, '--work-dir', tmp_path, '--cfg-options', *quick, data=digits)
    assert message is None
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert 0 <= metrics['mIoU'] <= 100 and {'mAcc', 'aAcc'} <= set(metrics)
    assert text.split('\n\n')[-2].split()[:3] == ['mIoU', 'mAcc', 'aAcc']
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    message, _ = tool(
        'test',
        UPERNET,
        checkpoint,
        '--work-dir',
        tmp_path / 'tta',
        '--tta',
        '--out',
        tmp_path / 'maps',
        '--cfg-options',
        *IN_PROCESS,
        data=digits,
    )
    assert message is None
    assert 0 <= json.loads((tmp_path / 'tta/metrics.json').read_text())['mIoU'] <= 100
    assert len(list((tmp_path / 'maps').glob('*.png'))) == 8


def test_killed_training_resumes(digits, tmp_path):
    """SIGKILL after a checkpoint; --resume goes on behind it and ends."""
    options = (
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'train_cfg.max_epochs=3',
        'train_cfg.val_interval=3',
        'default_hooks.logger.interval=1',
    )
    process = start('train', MASK_RCNN, *options, data=digits)
    for line in process.stdout:
        if re.search(r'Epoch\(train\)\s+\[2\]', line):
            break
    kill_all(process)
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    resumed = start('train', MASK_RCNN, '--resume', *options, data=digits)
    text, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, text
    assert 'resumed epoch: 1, iter: 2' in text
    assert not re.search(r'Epoch\(train\)\s+\[1\]', text)
    assert (tmp_path / 'epoch_3.pth').exists() and (tmp_path / 'metrics.json').exists()


@pytest.mark.slow
def test_official_detector_recipe_runs_without_a_gpu(official_names, tmp_path, tool):
    message, text = tool(
        'train',
        CASCADE_B,
        '--work-dir',
        tmp_path,
        '--auto-scale-lr',
        '--cfg-options',
        *ATTO,
        *ONE_EPOCH,
        'model.test_cfg.rpn.max_per_img=50',
        data=official_names,
    )
    assert message is None
    # One iteration from random weights detects nothing: mmdet then has no metrics at all, the AP is 0.
    assert json.loads((tmp_path / 'metrics.json').read_text()) == {
        f'coco/{kind}_{name}': 0.0 for kind in ('bbox', 'segm') for name in ('mAP', 'mAP_50', 'mAP_75')
    }
    assert 'no detection reached the score threshold' in text
    if not torch.cuda.is_available():
        assert 'no GPU here: mixed precision in float16 (AmpOptimWrapper) runs as fp32; --amp gives bfloat16\n' in text
        assert 'no GPU here: SyncBN runs as BN\n' in text


def test_official_segmentor_recipe_runs_without_a_gpu(official_names, tmp_path, tool):
    message, _ = tool(
        'train',
        UPERNET_T,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'model.backbone.init_cfg=None',
        'model.backbone.arch=atto',
        'model.decode_head.in_channels=[40,80,160,320]',
        'model.auxiliary_head.in_channels=160',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'model.decode_head.channels=64',
        *IN_PROCESS,
        data=official_names,
    )
    assert message is None
    assert 'mIoU' in json.loads((tmp_path / 'metrics.json').read_text())


def test_data_root_option_moves_everything(digits, tmp_path, tool):
    message, _ = tool(
        'train',
        MASK_RCNN,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *ONE_EPOCH,
        f'data_root={digits}/digits/coco',
        data='elsewhere',
    )
    assert message is None


@pytest.mark.parametrize(
    'options, sentence',
    [
        (
            (),
            'train data no_such_folder/coco/annotations/instances_train2017.json do not exist: set CONVNEXT_DENSE_DATA',
        ),
        (('--work-dir', 'w', '--resume', 'gone.pth'), 'there is no checkpoint file gone.pth'),
    ],
)
def test_missing_inputs(options, sentence, tool):
    message, _ = tool('train', CASCADE_B, *options)
    assert message.startswith('error: ') and sentence in message and '\n' not in message


def test_missing_config_and_checkpoint(tool):
    assert 'there is no config file configs/gone.py' in tool('train', 'configs/gone.py')[0]
    assert 'there is no checkpoint file gone.pth' in tool('test', CASCADE_B, 'gone.pth')[0]


@pytest.mark.parametrize(
    'option, sentence',
    [
        ('model.backbone.arch=giant', "error: ConvNeXt has no arch 'giant': use one of atto, femto"),
        ('model.backbone.out_indices=[0,7]', 'error: ConvNeXt cannot use out_indices=[0, 7]'),
        (
            'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/convnext.pth',
            'error: the pretrained weights http://127.0.0.1:9/convnext.pth could not be read',
        ),
    ],
)
def test_bad_model_options(option, sentence, official_names, tmp_path, tool):
    options = [item for item in ATTO if 'init_cfg' not in item and not option.startswith(item.split('=')[0])]
    message, _ = tool(
        'train', CASCADE_B, '--work-dir', tmp_path, '--cfg-options', *options, option, data=official_names
    )
    assert sentence in message and '\n' not in message
    if 'checkpoint' in option:
        assert '--cfg-options model.backbone.init_cfg=None' in message


def test_small_images(digits, tmp_path, tool):
    message, _ = tool(
        'train',
        UPERNET,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'model.data_preprocessor.size=(16,16)',
        'train_pipeline.2.scale=(16,16)',
        'train_dataloader.dataset.pipeline.2.scale=(16,16)',
        *IN_PROCESS,
        data=digits,
    )
    assert 'error: ConvNeXt got an image of 16x16, it needs at least 32x32' in message


def test_augmented_test_of_masks_is_refused(official_names, tmp_path, tool):
    torch.save({}, tmp_path / 'c.pth')
    message, _ = tool('test', CASCADE_B, tmp_path / 'c.pth', '--tta', data=official_names)
    assert message.startswith('error: --tta: mmdet can merge boxes') and '\n' not in message


@pytest.mark.parametrize('way', ['test', 'resume', 'load_from', 'init_cfg of the backbone', 'init_cfg of the model'])
def test_hostile_checkpoints_are_refused(way, digits, tmp_path, tool, monkeypatch):
    from mmengine.runner import CheckpointLoader
    from weights_helpers import Hostile, load_unsafely_in_the_end

    # A distribution of mmengine that loads unsafely what safe loading refused.
    monkeypatch.setitem(CheckpointLoader._schemes, '', load_unsafely_in_the_end)
    path, mark = tmp_path / 'c.pth', tmp_path / 'mark'
    torch.save({'state_dict': Hostile(mark)}, path)
    option = {
        'load_from': f'load_from={path}',
        'init_cfg of the model': f'model.init_cfg.checkpoint={path}',
        'init_cfg of the backbone': f'model.backbone.init_cfg.checkpoint={path}',
    }.get(way)
    more = (
        [option] + ([option.replace(f'checkpoint={path}', 'type=Pretrained')] if 'init_cfg' in way else [])
        if option
        else []
    )
    arguments = {'test': ('test', MASK_RCNN, path), 'resume': ('train', MASK_RCNN, '--resume', path)}.get(
        way, ('train', MASK_RCNN)
    )
    message, _ = tool(*arguments, '--work-dir', tmp_path / 'work', '--cfg-options', *more, *IN_PROCESS, data=digits)
    assert not mark.exists() and '\n' not in message
    if way == 'init_cfg of the model':  # read by mmengine
        assert message.startswith('error: the checkpoint cannot be read safely')
    else:
        assert f'{path} holds code, not only tensors' in message


def test_code_in_a_checkpoint_is_not_run_on_resume(digits, tmp_path, tool):
    work, mark = tmp_path / 'work', tmp_path / 'mark'
    options = ('--work-dir', work, '--cfg-options', *ONE_EPOCH)
    assert tool('train', MASK_RCNN, *options, data=digits)[0] is None
    checkpoint = torch.load(work / 'epoch_1.pth', weights_only=False)
    checkpoint['meta']['cfg'] = checkpoint['meta']['config'] = f'open({str(mark)!r}, "w").write("ran")'
    torch.save(checkpoint, work / 'epoch_1.pth')
    message, text = tool('train', MASK_RCNN, '--resume', *options, data=digits)
    assert message is None and not mark.exists()
    assert 'resumed epoch: 1' in text


def test_compiled_operators_that_cannot_be_imported(official_names, tmp_path, tool, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    message, _ = tool('train', CASCADE_B, '--work-dir', tmp_path, data=official_names)
    assert message.startswith('error: the compiled operators of mmcv ')
    assert message.endswith(
        "then pip install 'mmcv-lite>=2.1,<2.2' (this package provides its operators); "
        '`convnext-dense doctor CONFIG` checks this and what else a training needs'
    )


def test_unsupported_mmcv_ends_without_traceback(official_names, tmp_path):
    if not hasattr(mmdet, 'mmcv_maximum_version'):
        pytest.skip('this mmdet (OneDL) takes every mmcv')
    script = (
        "import runpy, sys, mmcv; mmcv.__version__ = '2.2.0'; "
        f"sys.argv = ['train.py', {str(CASCADE_B)!r}, '--work-dir', {str(tmp_path)!r}]; "
        f'sys.path[0] = {str(ROOT / "tools")!r}; '
        f"runpy.run_path({str(ROOT / 'tools/train.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        env=dict(os.environ, CONVNEXT_DENSE_DATA=str(official_names)),
    )
    assert done.returncode == 1
    assert 'error: mmcv 2.2.0 is installed, the toolkit wants mmcv>=2.0.0rc4, <2.2.0: ' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('config', [MASK_RCNN, UPERNET], ids=['mask_rcnn', 'upernet'])
def test_torch_compile(config, digits, tmp_path, tool):
    """mmengine's ``compile=``: the losses of the run without it."""
    short = (
        ('train_cfg.max_epochs=1', 'train_dataloader.batch_size=11')
        if config == MASK_RCNN
        else ('train_cfg.max_iters=3', 'default_hooks.checkpoint.interval=3')
    )
    losses = []
    for name, options in (('eager', ()), ('compiled', ('compile.backend=aot_eager',))):
        tool(
            'train',
            config,
            '--work-dir',
            tmp_path / name,
            '--cfg-options',
            *IN_PROCESS,
            *short,
            'randomness.seed=0',
            'default_hooks.logger.interval=1',
            *options,
            data=digits,
        )
        (log,) = (tmp_path / name).glob('*/*.log')
        text = log.read_text()
        assert ('Model has been "compiled"' in text) == bool(options)
        losses.append([float(loss) for loss in re.findall(r' loss: (\S+) ', text)])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
