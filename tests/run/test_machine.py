"""Configs on machines with and without a GPU."""

import pytest
from helpers import ROOT
from mmengine.config import Config

from convnext_dense.run.machine import describe_operators, fit_to_machine

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


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.setattr('convnext_dense.run.machine.has_compiled_operators', lambda: True)


def test_compiled_roi_align_is_replaced_on_a_cpu(on_cpu, compiled):
    cfg = Config.fromfile(CASCADE_B)
    head = cfg.model.roi_head
    head.mask_roi_extractor.roi_layer.pool_mode = 'max'  # torchvision's knows averages only
    assert fit_to_machine(cfg, 'none')[1:-1] == [
        "no GPU here: 1 RoIAlign of the model use torchvision's kernel, which is faster on CPUs; "
        '--cfg-options torchvision_roi_align=False keeps that of mmcv'
    ]
    assert head.bbox_roi_extractor.roi_layer.use_torchvision is True
    assert 'use_torchvision' not in head.mask_roi_extractor.roi_layer


@pytest.mark.parametrize('reason', ['option', 'own setting', 'GPU', 'provided operators'])
def test_roi_align_stays(on_cpu, compiled, monkeypatch, reason):
    cfg = Config.fromfile(CASCADE_B)
    layers = [cfg.model.roi_head[f'{name}_roi_extractor'].roi_layer for name in ('bbox', 'mask')]
    if reason == 'option':
        cfg.merge_from_dict(dict(torchvision_roi_align=False))
    elif reason == 'own setting':
        for layer in layers:
            layer.use_torchvision = False
    elif reason == 'GPU':
        monkeypatch.setattr('convnext_dense.run.machine.get_device', lambda: 'cuda')
    else:
        monkeypatch.setattr('convnext_dense.run.machine.has_compiled_operators', lambda: False)
    before = [dict(layer) for layer in layers]
    assert not [line for line in fit_to_machine(cfg, 'none') if 'RoIAlign' in line]
    assert [dict(layer) for layer in layers] == before


def test_a_mixture_of_distributions_is_said(monkeypatch):
    monkeypatch.setattr('convnext_dense.run.machine.mixed_distributions', lambda: 'mmcv and mmcv-lite ...')
    first, second = describe_operators()
    assert first.startswith("mmcv's operators are ") and second == 'warning: mmcv and mmcv-lite ...'
