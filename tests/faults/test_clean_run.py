"""A run without a fault: what protects it does not change its numbers."""

import json
import os

import pytest
from conftest import TOY, run_forked

SETTINGS = dict(epochs=dict(max_epochs=4), iterations=dict(max_iters=24, val_interval=5))
CONFIGS = dict(epochs=TOY, iterations=TOY.with_name('toy_iterations.py'))
FIRST_EPOCH = dict(epochs=6, iterations=5)  # iterations before the first validation


def without_our_hooks():
    """Return a fault: none of the hooks of this package is registered."""
    from mmengine.runner import Runner

    original = Runner.register_hook

    def register(self, hook, priority=None):
        if not type(hook).__module__.startswith('convnext_dense'):
            original(self, hook, priority)

    Runner.register_hook = register


def run_mmengine(config, folder, changes):
    """Return a fault: mmengine's own runner trains in the place of our tool."""

    def inject():
        from mmengine.config import Config
        from mmengine.runner import Runner

        cfg = Config.fromfile(config)
        cfg.work_dir = str(folder)
        cfg.train_cfg.update(changes)
        Runner.from_cfg(cfg).train()
        os._exit(0)

    return inject


def losses(folder):
    (log,) = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row['loss'] for row in rows if 'loss' in row]


@pytest.mark.parametrize('loop', SETTINGS)
def test_losses_are_those_without_our_hooks(loop, train, tmp_path):
    config = CONFIGS[loop]
    change = [f'train_cfg.{name}={value}' for name, value in SETTINGS[loop].items()]
    for work, inject in (('with', None), ('without', without_our_hooks)):
        outcome = train(config=config, change=change, work=work, inject=inject)
        assert outcome.status == 0, outcome.text
    expected = losses(tmp_path / 'without')
    assert len(expected) >= 20 and len(set(expected)) >= 20
    assert losses(tmp_path / 'with') == expected


@pytest.mark.parametrize('loop', SETTINGS)
def test_losses_before_the_first_validation_are_those_of_mmengine(loop, train, tmp_path):
    """Later ones have other random numbers: after a validation, a training goes on as one that was resumed there."""
    changes, config = SETTINGS[loop], CONFIGS[loop]
    plain = run_forked('train', log=tmp_path / 'log.txt', inject=run_mmengine(config, tmp_path / 'plain', changes))
    assert plain.status == 0, plain.text
    assert train(config=config, change=[f'train_cfg.{name}={value}' for name, value in changes.items()]).status == 0
    count = FIRST_EPOCH[loop]
    assert losses(tmp_path / 'work')[:count] == losses(tmp_path / 'plain')[:count]
