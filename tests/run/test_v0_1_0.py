"""A work folder that version 0.1.0 wrote: its checkpoint is tested and resumed, and its config is trained again.

tests/reference/v0_1_0/work_dir was written by commit 67794cb: UperNet with a ConvNeXt of 8 channels, 60 iterations on
16 digits of seed 0. Its metrics.json has the metrics of that commit on the 4 validation images.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from convnext_dense.sample_data import write_sample_data

pytest.importorskip('mmseg')
WRITTEN = ROOT / 'tests' / 'reference' / 'v0_1_0' / 'work_dir'


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('data')
    write_sample_data(folder / 'digits', num_train=16, num_val=4)
    return folder


@pytest.fixture
def moved(tmp_path) -> Path:
    """The work folder in another place than where it was written, as its pointer and config still say."""
    return Path(shutil.copytree(WRITTEN, tmp_path / 'moved'))


def options(data: Path, *more: str) -> list[str]:
    return ['--cfg-options', f'data_root={data}/digits/ade/ADEChallengeData2016', *more]


def test_checkpoint_has_the_metrics_of_its_time(tool, data, moved, tmp_path):
    message, _ = tool(
        'test', moved / 'small.py', moved / 'iter_60.pth', '--work-dir', tmp_path / 'test', *options(data)
    )
    assert message is None
    metrics = json.loads((tmp_path / 'test' / 'metrics.json').read_text())
    assert metrics == pytest.approx(json.loads((moved / 'metrics.json').read_text()), abs=0.02)
    assert metrics['mIoU'] > 21


def test_training_resumes(tool, data, moved):
    before = torch.load(moved / 'iter_60.pth', weights_only=False)
    longer = options(
        data, 'train_cfg.max_iters=62', 'train_cfg.val_interval=62', 'default_hooks.checkpoint.interval=62'
    )
    message, text = tool('train', moved / 'small.py', '--work-dir', moved, '--resume', *longer)
    assert message is None and 'iter_60.pth' in text
    after = torch.load(moved / 'iter_62.pth', weights_only=False)
    assert (before['meta']['iter'], after['meta']['iter']) == (60, 62)
    steps = {int(state['step']) for state in after['optimizer']['state'].values()}
    assert steps == {62}, 'the moments of AdamW go on'
    assert len(after['optimizer']['param_groups']) == len(before['optimizer']['param_groups'])


def test_dumped_config_trains_anew(tool, data, moved, tmp_path):
    short = options(data, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2')
    message, _ = tool('train', moved / 'small.py', '--work-dir', tmp_path / 'anew', *short)
    assert message is None and (tmp_path / 'anew' / 'iter_2.pth').exists()
