"""Fit a config to the machine that it runs on."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.device import get_device

from convnext_dense.mmcv_ops import has_compiled_operators, mixed_distributions, operators_in_use
from convnext_dense.models.fusion_rule import TORCH_CAN_BE_ASKED
from convnext_dense.run.options import nested_dicts

# Set to False in a config, or with --cfg-options, to keep mmcv's own RoIAlign on a CPU.
ROI_ALIGN_KEY = 'torchvision_roi_align'


def describe_operators() -> list[str]:
    """Say which operators mmcv runs, whether its distributions overwrite each other, and whether torch is too old."""
    lines = [f"mmcv's operators are {operators_in_use()}"]
    mixture = mixed_distributions()
    if mixture is not None:
        lines.append(f'warning: {mixture}')
    if not TORCH_CAN_BE_ASKED:
        lines.append(f'torch {torch.__version__} is too old for the fused block: the plain one runs, which is slower')
    return lines


def fit_to_machine(cfg: Config, launcher: str) -> list[str]:
    """Change ``cfg`` in place where this machine cannot run it as it is, or only slowly.

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
        changes += _replace_roi_align(cfg)
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


def _replace_roi_align(cfg: Config) -> list[str]:
    """Let mmcv's ``RoIAlign`` call torchvision's kernel, which gives the same values in half the time on a CPU.

    The provided operators call that kernel anyway. mmcv ignores ``pool_mode`` when it does: only averages are replaced.
    """
    if not has_compiled_operators() or not cfg.get(ROI_ALIGN_KEY, True):
        return []
    num_replaced = 0
    for part in nested_dicts(cfg.get('model')):
        if part.get('type') == 'RoIAlign' and part.get('pool_mode', 'avg') == 'avg' and 'use_torchvision' not in part:
            part['use_torchvision'] = True
            num_replaced += 1
    if not num_replaced:
        return []
    return [
        f"no GPU here: {num_replaced} RoIAlign of the model use torchvision's kernel, which is faster on CPUs; "
        f'--cfg-options {ROI_ALIGN_KEY}=False keeps that of mmcv'
    ]


def _replace_sync_bn(cfg: Config) -> bool:
    """Replace SyncBN by BN in every ``norm_cfg`` of the model; return whether there was one."""
    replaced = False
    for part in nested_dicts(cfg.model):
        if part.get('type') in ('SyncBN', 'MMSyncBN'):
            part['type'] = 'BN'
            replaced = True
    return replaced
