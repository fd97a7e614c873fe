"""Configs on machines with and without a GPU."""

import pytest
from helpers import ROOT
from mmengine.config import Config

from convnext_dense.run.machine import fit_to_machine

pytest.importorskip('mmdet')
CASCADE_B = ROOT / 'configs/cascade_mask_rcnn/convnext_b_3x_coco.py'


def test_gpu_keeps_mixed_precision(monkeypatch):
    monkeypatch.setattr('convnext_dense.run.machine.get_device', lambda: 'cuda')
    cfg = Config.fromfile(CASCADE_B)
    assert fit_to_machine(cfg, 'pytorch') == []
    assert fit_to_machine(cfg, 'none') == ['one process: SyncBN runs as BN']
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and 'model_wrapper_cfg' not in cfg
    assert {head.norm_cfg.type for head in cfg.model.roi_head.bbox_head} == {'BN'}


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr('convnext_dense.run.machine.get_device', lambda: 'cpu')


def test_float16_runs_as_fp32_on_a_cpu(on_cpu):
    cfg = Config.fromfile(CASCADE_B)
    assert fit_to_machine(cfg, 'none') == [
        'no GPU here: mixed precision in float16 (AmpOptimWrapper) runs as fp32; --amp gives bfloat16',
        'no GPU here: SyncBN runs as BN',
    ]
    assert cfg.optim_wrapper.type == 'OptimWrapper' and 'loss_scale' not in cfg.optim_wrapper
    assert {head.norm_cfg.type for head in cfg.model.roi_head.bbox_head} == {'BN'}


@pytest.mark.parametrize('dtype', ['bfloat16', 'torch.bfloat16'])
def test_bfloat16_stays_on_a_cpu(on_cpu, dtype):
    cfg = Config(
        dict(model=dict(), optim_wrapper=dict(type='AmpOptimWrapper', dtype=dtype, loss_scale='dynamic', optimizer={}))
    )
    assert fit_to_machine(cfg, 'none') == ['no GPU here: mixed precision in bfloat16 by CPUAmpOptimWrapper']
    assert cfg.optim_wrapper == dict(type='CPUAmpOptimWrapper', optimizer={})


def test_several_processes_on_cpus_are_wrapped_without_a_device(on_cpu):
    cfg = Config(dict(model=dict(norms=[dict(type='MMSyncBN'), (dict(type='SyncBN'),)])))
    assert fit_to_machine(cfg, 'pytorch') == ['no GPU here: SyncBN runs as BN']
    assert cfg.model.norms[0].type == cfg.model.norms[1][0].type == 'BN'
    assert cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel' and cfg.model_wrapper_cfg.device_ids is None
