"""Trackers, the progress bar, and out-of-memory errors."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.visualization import Visualizer

from convnext_dense.errors import UserError
from convnext_dense.run.watching import add_trackers, memory_errors, progress_line, use_own_visualizer

LOCAL = dict(type='LocalVisBackend')


def test_trackers_are_added_to_what_is_there(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=[LOCAL]), work_dir='/runs/a b'))
    add_trackers(cfg, ['tensorboard', 'mlflow', 'tensorboard'])
    assert [backend.type for backend in cfg.visualizer.vis_backends] == [
        'LocalVisBackend',
        'TensorboardVisBackend',
        'MLflowVisBackend',
    ]


def test_mlflow_writes_to_its_server_or_to_the_work_folder(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    local = dict(tracking_uri='sqlite:////runs/a b/mlflow.db', artifact_location='file:///runs/a%20b/mlflow')
    for options in (dict(local, artifact_suffix=()), dict(tracking_uri='http://127.0.0.1:5000')):
        cfg = Config(dict(visualizer=dict(type='Visualizer'), work_dir='/runs/a b'))
        add_trackers(cfg, ['mlflow'])
        assert cfg.visualizer.vis_backends[-1] == dict(type='MLflowVisBackend', exp_name='a b', **options)
        monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://127.0.0.1:5000')


def test_trackers_that_cannot_be_used(monkeypatch):
    cfg = Config(dict(visualizer=dict(type='Visualizer')))
    with pytest.raises(UserError, match='--track excel: there is no such tracker, use tensorboard, mlflow'):
        add_trackers(cfg, ['excel'])
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='--track wandb needs the package wandb: pip install wandb'):
        add_trackers(cfg, ['wandb'])
    monkeypatch.undo()
    monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
    with pytest.raises(UserError, match='the config has no visualizer'):
        add_trackers(Config(dict(model={})), ['wandb'])


def test_second_run_has_a_visualizer_of_its_own(tmp_path):
    """With mmengine's own name for all of them, the scalars of every run went into the folder of the first one."""
    for number in range(3):
        cfg = Config(dict(visualizer=dict(type='Visualizer', name='one name', vis_backends=[LOCAL])))
        use_own_visualizer(cfg)
        assert cfg.visualizer.name == ('one name', 'one name_2', 'one name_3')[number]
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, save_dir=str(tmp_path / str(number))))
        visualizer.add_scalar('loss', number, step=0)
        assert Visualizer.get_current_instance() is visualizer, 'which the hooks of the toolkits take'
        visualizer.close()
    written = [path.read_text() for path in sorted(tmp_path.rglob('scalars.json'))]
    assert [json.loads(text)['loss'] for text in written] == [0, 1, 2]


@pytest.mark.parametrize('cfg', [dict(), dict(visualizer=None), dict(visualizer=dict(type='Visualizer'))])
def test_visualizer_without_a_name_gets_that_of_the_runner(cfg):
    changed = Config(cfg)
    use_own_visualizer(changed)
    assert changed.to_dict() == cfg


def test_progress_line():
    assert progress_line(0, 200, 0, 0.0) == '[' + ' ' * 30 + '] 0 of 200 iterations'
    assert progress_line(100, 200, 50, 25.0) == '[' + '#' * 15 + ' ' * 15 + '] 100 of 200 iterations, 0:00:50 left'
    assert progress_line(7200, 14400, 0, 7200.0).endswith('7,200 of 14,400 iterations, 2:00:00 left')


@pytest.mark.parametrize(
    'error, where',
    [
        (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has'), 'the GPU has too little'),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 'this machine has too'),
        (MemoryError(), 'this machine has too'),
    ],
)
def test_memory_errors_name_what_helps(error, where):
    with pytest.raises(UserError, match=where) as raised, memory_errors():
        raise error
    for argument in ('--amp', 'model.backbone.memory=checkpoint', 'train_dataloader.batch_size=1'):
        assert argument in str(raised.value)


def test_a_real_allocation_that_is_too_large():
    with pytest.raises(UserError, match='this machine has too little memory'), memory_errors():
        torch.empty(2**50, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match='^shape mismatch$'), memory_errors():
        raise RuntimeError('shape mismatch')
