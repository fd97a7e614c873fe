"""From a config and command-line options to a finished run of mmengine's runner and a table of its metrics.

``tools/train.py`` and ``tools/test.py`` are the command lines of this module, one pair for mmdet and mmseg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from convnext_dense.engine.load_hook import attach_load_hook
from convnext_dense.errors import UserError
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.metrics import MetricsHook, metrics_table
from convnext_dense.run.options import DATA_VARIABLE, read_config
from convnext_dense.toolkits import check_toolkit
from convnext_dense.weights.safe_reading import only_safe_loading
from convnext_dense.weights.sources import SCHEME, check_source

TTA_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # official multi-scale test


def train(args: argparse.Namespace) -> None:
    """Train as ``args`` of tools/train.py say; ends with the metrics of the last validation.

    Raises:
        UserError: Something given cannot be used.
    """
    cfg = read_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        if get_device() == 'cpu':
            cfg.optim_wrapper.setdefault('dtype', 'bfloat16')  # who asks for it shall have it
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(
                f'--auto-scale-lr needs the batch that the rate of {args.config} was made for: add '
                '--cfg-options auto_scale_lr.base_batch_size=16'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if cfg.get('load_from'):
        check_source(cfg.load_from, 'checkpoint')
    _check_data(cfg, ('train', 'val') if cfg.get('val_dataloader') else ('train',))
    _run(cfg, args.launcher, 'train')


def test(args: argparse.Namespace) -> None:
    """Test as ``args`` of tools/test.py say; ends with the metrics.

    Raises:
        UserError: Something given cannot be used.
    """
    check_source(args.checkpoint, 'checkpoint')
    cfg = read_config(args)
    cfg.load_from = args.checkpoint
    if args.tta:
        use_test_time_augmentation(cfg)
    if args.show_dir:
        _draw_into(cfg, Path(args.show_dir).absolute())
    if args.out:
        _keep_predictions(cfg, args.out)
    _check_data(cfg, ('test',))
    _run(cfg, args.launcher, 'test')


def use_test_time_augmentation(cfg: Config) -> None:
    """Official multi-scale and flip test for segmentors: whole images at 0.5 to 1.75 times the test scale.

    mmseg's own ``tta_pipeline`` scales the raw image instead of the test scale.

    Raises:
        UserError: The model cannot be tested so.
    """
    if 'decode_head' not in cfg.model:
        if 'mask_head' in str(cfg.model):
            raise UserError(
                '--tta: mmdet can merge boxes of augmented images, but not masks, so a detector with masks '
                'has no such test: leave out --tta'
            )
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise UserError('--tta: the config defines no tta_model and tta_pipeline: add them or leave out --tta')
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        return
    pipeline = cfg.test_dataloader.dataset.pipeline
    at = [i for i, step in enumerate(pipeline) if step.type == 'Resize' and 'scale' in step]
    if len(at) != 1:
        raise UserError(
            f'--tta scales the Resize(scale=...) of the test pipeline, which has {len(at)} of them: give it one'
        )
    before, resize, after = pipeline[: at[0]], pipeline[at[0]], pipeline[at[0] + 1 :]
    scales = [tuple(int(side * ratio) for side in resize.scale) for ratio in TTA_RATIOS]
    cfg.test_dataloader.dataset.pipeline = [
        *before,
        dict(
            type='TestTimeAug',
            transforms=[
                [dict(resize, scale=scale) for scale in scales],
                [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
                *([step] for step in after),
            ],
        ),
    ]
    cfg.model.test_cfg = ConfigDict(mode='whole')
    cfg.model = ConfigDict(cfg.get('tta_model') or dict(type='SegTTAModel'), module=cfg.model)


@only_safe_loading()
def _run(cfg: Config, launcher: str, task: str) -> None:
    check_toolkit(cfg.get('default_scope') or 'mmengine')
    changes = fit_to_machine(cfg, launcher)
    if launcher == 'pytorch' and get_device() == 'cpu' and not is_distributed():
        torch.distributed.init_process_group('gloo')  # mmengine's own set-up chooses a GPU first
    if cfg.get('resume') and not cfg.get('load_from'):
        cfg.load_from = find_latest_checkpoint(cfg.work_dir)
    if cfg.get('load_from'):
        cfg.load_from = SCHEME + cfg.load_from  # read safely, from every source
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if is_main_process():  # known only now
        print(*changes, sep='\n', flush=True)
    kept = MetricsHook()
    runner.register_hook(kept)
    attach_load_hook(runner, whole_model=task == 'test')
    getattr(runner, task)()
    if not is_main_process():
        return
    if kept.metrics is None:
        print(f'\nnothing was evaluated in this run (iteration {runner.iter})')
        return
    path = Path(runner.work_dir) / 'metrics.json'
    path.write_text(json.dumps({key: float(value) for key, value in kept.metrics.items()}, indent=2) + '\n')
    print(f'\n{metrics_table(kept.metrics)}\n\nwritten to {path}')


def _check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Every local file and folder of the data sets must exist before a model is built."""
    for split in splits:
        for dataset in _leaf_datasets(cfg[f'{split}_dataloader']['dataset']):
            parts = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
            for part in filter(None, parts):
                path = Path(dataset.get('data_root') or '') / part
                if '://' not in str(part) + str(dataset.get('data_root')) and not path.exists():
                    raise UserError(
                        f'the {split} data {path} do not exist: set {DATA_VARIABLE}=FOLDER, the folder that holds '
                        'coco/ and ade/, or --cfg-options data_root=FOLDER; the README says how data are laid out and '
                        'how convnext_dense.sample_data makes a small set to try'
                    )


def _leaf_datasets(dataset: Mapping) -> Iterator[Mapping]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset
    for part in inner:
        yield from _leaf_datasets(part)


def _draw_into(cfg: Config, folder: Path) -> None:
    """Predictions beside ground truth for every test image."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError('--show-dir: the config has no default_hooks.visualization, which draws: add it')
    hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = str(folder)
    else:
        hook.interval = 1
        cfg.visualizer.save_dir = str(folder)


def _keep_predictions(cfg: Config, out: str) -> None:
    """Detections as one pickle, segmentations as a folder of label maps, as in the toolkits."""
    if cfg.default_scope == 'mmseg':
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {out}: detections are written as one pickle, give a name that ends in .pkl')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    cfg.test_evaluator = [*evaluators, dict(type='DumpDetResults', out_file_path=out)]
