"""Kind 7: killed and resumed is bit by bit what it would have been, through the real tool."""

import os
import shutil
import signal
import sys

import pytest
import torch
from conftest import TOY
from fresh import start
from helpers import ROOT, kill_all

EPOCHS = ('train_cfg.max_epochs=3', 'train_dataloader.dataset.augment=True')
ITERATIONS = ('train_dataloader.dataset.augment=True',)
TRAIN = ROOT / 'tools/train.py'
TOY_ITERATIONS = TOY.with_name('toy_iterations.py')
WORKERS = {
    'no workers': (),
    'two workers': ('train_dataloader.num_workers=2',),
    'two persistent workers': ('train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True'),
}


def killed_at(iteration):
    """Return a fault: SIGKILL when this iteration begins."""

    def inject():
        from convnext_dense.engine.finite import FiniteStepsHook

        original = FiniteStepsHook.before_train_iter

        def fatal(self, runner, batch_idx, data_batch=None):
            if runner.iter + 1 == iteration:
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, runner, batch_idx, data_batch)

        FiniteStepsHook.before_train_iter = fatal

    return inject


def assert_same_training(one, other):
    """The same weights, running statistics, averages of weights, optimizer, schedules and random numbers."""
    one, other = (torch.load(path, weights_only=False) for path in (one, other))
    assert one['meta']['iter'] == other['meta']['iter']
    assert ('ema_state_dict' in one) == ('ema_state_dict' in other)
    for weights in ('state_dict', 'ema_state_dict'):
        for name, value in one.get(weights, {}).items():
            assert torch.equal(value, other[weights][name]), name
    for number, state in one['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(value, other['optimizer']['state'][number][name]), (number, name)
    assert one['param_schedulers'] == other['param_schedulers']
    assert one['random_states'][0]['python'] == other['random_states'][0]['python']
    assert torch.equal(one['random_states'][0]['torch'], other['random_states'][0]['torch'])
    assert torch.equal(one['random_states'][0]['numpy'][1], other['random_states'][0]['numpy'][1])


@pytest.mark.parametrize('workers', WORKERS)
@pytest.mark.parametrize('loop', ['epochs', 'iterations', 'inside an epoch', 'endless sampler'])
def test_killed_and_resumed_is_bit_identical(loop, workers, train, tmp_path):
    config = TOY_ITERATIONS if loop in ('iterations', 'endless sampler') else TOY
    change = [*(ITERATIONS if config == TOY_ITERATIONS else EPOCHS), *WORKERS[workers]]
    last, killed = 'epoch_3.pth', 10  # in the second epoch of 6 iterations
    if loop == 'inside an epoch':
        change += ['default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=4']
        last = 'iter_18.pth'
    elif loop != 'epochs':
        last, killed = 'iter_14.pth', 12
    if loop == 'endless sampler':
        change.append('train_dataloader.sampler.type=InfiniteSampler')
    assert train(change=change, config=config, work='whole').status == 0
    assert train(change=change, config=config, inject=killed_at(killed)).status == -signal.SIGKILL
    resumed = train('--resume', change=change, config=config)
    assert resumed.status == 0, resumed.text
    assert_same_training(tmp_path / 'whole' / last, tmp_path / 'work' / last)


@pytest.mark.slow
@pytest.mark.parametrize(
    'loop, workers',
    [
        ('epochs', 'no workers'),
        ('iterations', 'two workers'),
        ('inside an epoch', 'two persistent workers'),
        ('endless sampler', 'two workers'),
    ],
)
def test_fresh_process_killed_and_resumed_is_bit_identical(loop, workers, train, tmp_path):
    """SIGKILL from outside, at some moment behind the first checkpoint."""
    by_epoch = loop in ('epochs', 'inside an epoch')
    config = TOY if by_epoch else TOY_ITERATIONS
    common = ['train_dataloader.dataset.augment=True', *WORKERS[workers]]
    if loop == 'inside an epoch':
        common += ['default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=4']
    elif loop == 'endless sampler':
        common.append('train_dataloader.sampler.type=InfiniteSampler')
    end = 'train_cfg.max_epochs' if by_epoch else 'train_cfg.max_iters'
    work = tmp_path / 'work'
    until = 'Epoch(val) [2]' if by_epoch else 'Saving checkpoint at 10 iterations'
    process = start([sys.executable, TRAIN, config, '--no-report'], work, [*common, f'{end}=100000'], until=until)
    kill_all(process)
    saved = max(torch.load(path, weights_only=False)['meta']['iter'] for path in work.glob('*.pth'))
    total = saved // 6 + 2 if by_epoch else saved + 7  # of epochs of 6 iterations, or of iterations
    last = f'epoch_{total}.pth'
    if not by_epoch:
        last = f'iter_{total}.pth'
    elif loop == 'inside an epoch':
        last = f'iter_{6 * total}.pth'
    change = [*common, f'{end}={total}']
    resumed = train('--resume', change=change, config=config)
    assert resumed.status == 0 and 'resumed from' in resumed.text, resumed.text
    assert train(change=change, config=config, work='whole').status == 0
    assert_same_training(tmp_path / 'whole' / last, work / last)


def test_workers_do_not_change_the_data(train, tmp_path):
    for name, workers in (('none', 'no workers'), ('two', 'two workers')):
        assert train(change=[*EPOCHS, *WORKERS[workers], 'train_cfg.max_epochs=1'], work=name).status == 0
    assert_same_training(tmp_path / 'none/epoch_1.pth', tmp_path / 'two/epoch_1.pth')


def test_skipped_batches_are_not_loaded(train, tmp_path):
    assert train(change=ITERATIONS, config=TOY_ITERATIONS, inject=killed_at(12)).status == -signal.SIGKILL

    def count():
        import toy_parts

        original = toy_parts.ToyImages.__getitem__

        def loud(self, index):
            print('LOADED', int(index))
            return original(self, index)

        toy_parts.ToyImages.__getitem__ = loud

    resumed = train('--resume', change=ITERATIONS, config=TOY_ITERATIONS, inject=count)
    assert resumed.status == 0, resumed.text
    validated = 2
    assert resumed.text.count('LOADED') == 2 * (14 - 10) + validated, 'two images in each iteration behind the tenth'


def test_seed_of_the_first_run_goes_on(train, tmp_path):
    change = [*EPOCHS, 'randomness.seed=None']
    assert train(change=change, inject=killed_at(10)).status == -signal.SIGKILL
    shutil.copytree(tmp_path / 'work', tmp_path / 'copy')
    for work in ('work', 'copy'):
        assert train('--resume', change=change, work=work).status == 0
    assert_same_training(tmp_path / 'work/epoch_3.pth', tmp_path / 'copy/epoch_3.pth')


def test_unusable_random_states_are_said(trained, train, tmp_path):
    shutil.copytree(trained, tmp_path / 'work')
    path = tmp_path / 'work/epoch_1.pth'
    for wrong, sentence in (
        ([], 'the random numbers of 0 processes'),
        (None, 'the random numbers of no processes'),
        ([{}, {}], 'the random numbers of 2 processes'),
        ([{'python': 1}], 'the random numbers in the checkpoint cannot be used'),
    ):
        checkpoint = torch.load(path, weights_only=False)
        checkpoint['random_states'] = wrong
        torch.save(checkpoint, path)
        outcome = train('--resume', change=['train_cfg.max_epochs=1'])
        assert outcome.status == 0 and sentence in outcome.text
