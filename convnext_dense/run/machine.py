"""Fit a config to the machine that it runs on."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.device import get_device

from convnext_dense.run.options import nested_dicts


def fit_to_machine(cfg: Config, launcher: str) -> list[str]:
    """Change ``cfg`` in place where this machine cannot run it as it is.

    Args:
        cfg: A config of mmdet or mmseg.
        launcher: How several processes were started; 'none' for one process.

    Returns:
        A line for each change.
    """
    on_cpu = get_device() == 'cpu'
    changes = []
    if on_cpu:
        changes += _replace_gpu_mixed_precision(cfg)
    if (on_cpu or launcher == 'none') and _replace_sync_bn(cfg):
        changes.append('no GPU here: SyncBN runs as BN' if on_cpu else 'one process: SyncBN runs as BN')
    if on_cpu and cfg.get('sync_bn'):
        cfg.sync_bn = None
        changes.append('no GPU here: BN is not made SyncBN (sync_bn)')
    if on_cpu and launcher != 'none' and 'model_wrapper_cfg' not in cfg and 'strategy' not in cfg:
        # The default wrapper of mmengine names a GPU.
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            device_ids=None,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    return changes


def _replace_gpu_mixed_precision(cfg: Config) -> list[str]:
    """Replace mmengine's ``AmpOptimWrapper``, which needs a GPU."""
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') != 'AmpOptimWrapper':
        return []
    dtype = str(wrapper.get('dtype')).removeprefix('torch.')
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
    if dtype == 'bfloat16':
        wrapper['type'] = 'CPUAmpOptimWrapper'
        return ['no GPU here: mixed precision in bfloat16 by CPUAmpOptimWrapper']
    wrapper['type'] = 'OptimWrapper'
    return ['no GPU here: mixed precision in float16 (AmpOptimWrapper) runs as fp32; --amp gives bfloat16']


def _replace_sync_bn(cfg: Config) -> bool:
    """Replace SyncBN by BN in every ``norm_cfg`` of the model; return whether there was one."""
    replaced = False
    for part in nested_dicts(cfg.model):
        if part.get('type') in ('SyncBN', 'MMSyncBN'):
            part['type'] = 'BN'
            replaced = True
    return replaced
