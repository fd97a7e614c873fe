"""Fit a config to the machine that it runs on."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.device import get_device


def fit_to_machine(cfg: Config, launcher: str) -> list[str]:
    """Change ``cfg`` where this machine cannot run it as it stands; returns a line for each change."""
    lines = []
    on_cpu = get_device() == 'cpu'
    wrapper = cfg.get('optim_wrapper') or {}
    if on_cpu and wrapper.get('type') == 'AmpOptimWrapper':
        half = str(wrapper.get('dtype')).removeprefix('torch.') == 'bfloat16'
        wrapper['type'] = 'CPUAmpOptimWrapper' if half else 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        lines.append(
            'no GPU here: mixed precision in bfloat16 by CPUAmpOptimWrapper'
            if half
            else 'no GPU here: mixed precision in float16 (AmpOptimWrapper) runs as fp32; --amp gives bfloat16'
        )
    if (on_cpu or launcher == 'none') and _replace_sync_bn(cfg.model):
        lines.append('no GPU here: SyncBN runs as BN' if on_cpu else 'one process: SyncBN runs as BN')
    if on_cpu and cfg.get('sync_bn'):
        cfg.sync_bn = None
        lines.append('no GPU here: BN is not made SyncBN (sync_bn)')
    if on_cpu and launcher != 'none' and 'model_wrapper_cfg' not in cfg and 'strategy' not in cfg:
        # mmengine's own wrapping names a GPU.
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            device_ids=None,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    return lines


def _replace_sync_bn(value: Any) -> bool:
    """SyncBN -> BN in every ``norm_cfg`` below; True if there was one."""
    if isinstance(value, dict):
        found = value.get('type') in ('SyncBN', 'MMSyncBN')
        if found:
            value['type'] = 'BN'
        return any([found, *map(_replace_sync_bn, value.values())])
    return isinstance(value, (list, tuple)) and any([_replace_sync_bn(item) for item in value])
