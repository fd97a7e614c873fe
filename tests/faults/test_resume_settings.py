"""Settings that differ when a training is resumed: the table says which value counts, and that value is in effect."""

import shutil

import pytest
import torch
from conftest import TOY

from convnext_dense.run.resume_settings import compare_settings


def group_of(saved):
    return saved['optimizer']['param_groups'][0]


# Restored with the state of optimizer and schedule. The reader gets the last checkpoint.
KEPT = {
    'optim_wrapper.optimizer.lr=0.5': lambda saved: group_of(saved)['initial_lr'] == 0.01,
    'optim_wrapper.optimizer.weight_decay=0.3': lambda saved: (
        saved['optimizer']['param_groups'][0]['weight_decay'] == 0.01
    ),
    'optim_wrapper.optimizer.eps=0.1': lambda saved: saved['optimizer']['param_groups'][0]['eps'] == 1e-8,
    'param_scheduler.0.start_factor=0.7': lambda saved: saved['param_schedulers'][0]['start_factor'] == 0.1,
    'param_scheduler.0.end=500': lambda saved: saved['param_schedulers'][0]['end'] == 10,
    'randomness.seed=5': lambda saved: saved['meta']['seed'] == 0,
}

# Taken from the config. The reader gets the last checkpoint, of the second epoch unless it is trained longer.
FOLLOWED = {
    'train_dataloader.batch_size=3': lambda saved: saved['meta']['iter'] == 2 * 4,  # counted anew
    'train_dataloader.dataset.length=8': lambda saved: saved['meta']['iter'] == 2 * 4,
    'optim_wrapper.accumulative_counts=2': lambda saved: saved['optimizer']['state'][0]['step'] == 6 + 3,
    'default_hooks.logger.interval=3': lambda saved: saved['meta']['iter'] == 12,
}


@pytest.mark.parametrize('change', [*KEPT, *FOLLOWED])
def test_table_says_what_is_in_effect(change, trained, train, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(trained, work)
    outcome = train('--resume', change=['train_cfg.max_epochs=2', change])
    assert outcome.status == 0, outcome.text
    key, _, value = change.partition('=')
    row = next(line.split() for line in outcome.text.splitlines() if line.strip().startswith(key + ' '))
    assert ' '.join(row[-2:]) == ("the checkpoint's" if change in KEPT else "the config's")
    assert value in row
    saved = torch.load(work / 'epoch_2.pth', weights_only=False)
    assert {**KEPT, **FOLLOWED}[change](saved)
    assert ('give the checkpoint as load_from' in outcome.text) == (change in KEPT)


def test_no_table_without_differences(trained, train, tmp_path):
    shutil.copytree(trained, tmp_path / 'work')
    outcome = train('--resume', change=['train_cfg.max_epochs=1'])
    assert outcome.status == 0 and 'settings that differ' not in outcome.text


def test_a_seed_that_was_drawn_is_no_difference():
    """A run without a seed in its config draws one, and the resumed run takes it from the checkpoint."""
    assert compare_settings('a = 1\n', 'a = 1\nrandomness = dict(seed=7)\n', seed=7) == []
    assert compare_settings('a = 1\n', 'a = 1\n', seed=7) == []
    table = compare_settings('a = 1\n', 'a = 1\nrandomness = dict(seed=5)\n', seed=7)
    assert table[2].split() == ['randomness.seed', '7', '5', 'the', "checkpoint's"]


def test_only_what_differs_is_named(trained, train, tmp_path):
    shutil.copytree(trained, tmp_path / 'work')
    lines = train('--resume', change=['train_cfg.max_epochs=2']).text.splitlines()
    begin = lines.index('settings that differ from those of the checkpoint:')
    assert [line.split()[0] for line in lines[begin + 1 : begin + 3]] == ['setting', 'train_cfg.max_epochs']
    assert lines[begin + 2].split() == ['train_cfg.max_epochs', '1', '2', 'the', "config's"]
    assert not lines[begin + 3].startswith('  ')


@pytest.mark.parametrize(
    ('schedules', 'sentence'),
    [
        (
            "[dict(type='PolyLR',end=10)]",
            'the checkpoint holds the state of LinearLR, param_scheduler of the config is PolyLR',
        ),
        (
            "[dict(type='LinearLR',end=10),dict(type='LinearLR',begin=10,end=20)]",
            'the checkpoint holds the state of LinearLR, param_scheduler of the config is LinearLR, LinearLR',
        ),
    ],
)  # fmt: skip
def test_schedules_that_do_not_fit(schedules, sentence, trained, train, tmp_path):
    shutil.copytree(trained, tmp_path / 'work')
    config = tmp_path / 'other.py'
    config.write_text(f"_base_ = ['{TOY}']\nparam_scheduler = {schedules}\n")
    outcome = train('--resume', change=['train_cfg.max_epochs=2'], config=config)
    assert outcome.status == 1 and sentence in outcome.error


@pytest.mark.parametrize('text', [None, 'import os\nos.abort()', 'a = __import__("os").abort()', 'a = (', 7])
def test_a_config_that_is_no_data_is_not_executed(text, trained, train, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(trained, work)
    checkpoint = torch.load(work / 'epoch_1.pth', weights_only=False)
    checkpoint['meta']['cfg'] = text
    torch.save(checkpoint, work / 'epoch_1.pth')
    outcome = train('--resume', change=['train_cfg.max_epochs=1'])
    assert outcome.status == 0 and 'the checkpoint holds no config that can be compared' in outcome.text


def test_another_number_of_schedules(trained, train, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(trained, work)
    checkpoint = torch.load(work / 'epoch_1.pth', weights_only=False)
    checkpoint['param_schedulers'] *= 2
    torch.save(checkpoint, work / 'epoch_1.pth')
    outcome = train('--resume', change=['train_cfg.max_epochs=2'])
    assert (
        outcome.status == 1 and 'holds the state of 2 schedules, param_scheduler of the config has 1' in outcome.error
    )
