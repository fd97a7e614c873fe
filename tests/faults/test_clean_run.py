"""A run without a fault: what protects it does not change its numbers."""

import json
import os

import pytest
from conftest import TOY
from forked import run_forked

CONFIGS = dict(epochs=TOY, iterations=TOY.with_name('toy_iterations.py'))
# 24 iterations with validations and checkpoints between them, and as many without.
BROKEN_UP = dict(
    epochs={'train_cfg.max_epochs': 4},
    iterations={'train_cfg.max_iters': 24, 'train_cfg.val_interval': 5},
)
IN_ONE_GO = dict(
    epochs={'train_cfg.max_epochs': 1, 'train_dataloader.dataset.length': 48},
    iterations={
        'train_cfg.max_iters': 24,
        'train_cfg.val_interval': 24,
        'default_hooks.checkpoint.interval': 24,
        'train_dataloader.dataset.length': 48,
    },
)


def without_our_hooks():
    """A fault: the hooks of this package are not registered, but for the one that restores random numbers.

    After a validation it lets a training go on with the numbers that one has which is resumed there.
    """
    from mmengine.runner import Runner

    original = Runner.register_hook

    def register(self, hook, priority=None):
        if not type(hook).__module__.startswith('convnext_dense') or type(hook).__name__ == 'RandomStateHook':
            original(self, hook, priority)

    Runner.register_hook = register


def run_mmengine(config, folder, changes):
    """Return a fault: mmengine's own runner trains in the place of our tool."""

    def inject():
        from mmengine.config import Config
        from mmengine.runner import Runner

        cfg = Config.fromfile(config)
        cfg.work_dir = str(folder)
        cfg.merge_from_dict(changes)
        Runner.from_cfg(cfg).train()
        os._exit(0)

    return inject


def losses(folder):
    (log,) = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row['loss'] for row in rows if 'loss' in row]


@pytest.mark.parametrize('loop', CONFIGS)
def test_losses_are_those_without_our_hooks(loop, train, tmp_path):
    change = [f'{name}={value}' for name, value in BROKEN_UP[loop].items()]
    for work, inject in (('with', None), ('without', without_our_hooks)):
        outcome = train(config=CONFIGS[loop], change=change, work=work, inject=inject)
        assert outcome.status == 0, outcome.text
    expected = losses(tmp_path / 'without')
    assert len(expected) == 24 and len(set(expected)) >= 20
    assert losses(tmp_path / 'with') == expected


@pytest.mark.parametrize('loop', CONFIGS)
def test_losses_are_those_of_mmengine(loop, train, tmp_path):
    changes, config = IN_ONE_GO[loop], CONFIGS[loop]
    plain = run_forked('train', log=tmp_path / 'log.txt', inject=run_mmengine(config, tmp_path / 'plain', changes))
    assert plain.status == 0, plain.text
    ours = train(config=config, change=[f'{name}={value}' for name, value in changes.items()])
    assert ours.status == 0, ours.text
    expected = losses(tmp_path / 'plain')
    assert len(expected) == 24 and len(set(expected)) >= 20
    assert losses(tmp_path / 'work') == expected
