"""From a config and command-line options to a finished run of mmengine's runner and a table of its metrics.

``tools/train.py`` and ``tools/test.py`` are the command lines of this module, one pair for mmdet and mmseg.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from .errors import UserError
from .load_hook import ConvNeXtLoadHook
from .weight_files import SCHEME, check_source, only_safe_loading

TTA_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # official multi-scale test
DATA_VARIABLE = 'CONVNEXT_DENSE_DATA'
INSTALL_MMCV = 'build it against this torch with `make install`, or `python tools/install_mmcv.py`'


def common_arguments(description: str) -> argparse.ArgumentParser:
    """The options that training and testing share, named as in mmdet's and mmseg's tools."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and metrics.json; default work_dirs/NAME_OF_THE_CONFIG'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change the config, as in model.backbone.init_cfg=None or key="[(a,b),(c,d)]"; '
        'data_root=FOLDER moves everything that the config reads below its data_root',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')
    return parser


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


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the program with one sentence and status 1 where the user can act; other errors keep their traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f'error: {error}')
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else 'not a checkpoint'
        sys.exit(
            f'error: the checkpoint cannot be read safely, it is damaged or holds more than tensors ({reason}): '
            'give another file, or save this one again as a plain state dict'
        )


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
    if on_cpu and launcher != 'none' and 'model_wrapper_cfg' not in cfg and 'strategy' not in cfg:
        # mmengine's own wrapping names a GPU.
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            device_ids=None,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    return lines


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


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """A few lines for people out of mmengine's metrics."""

    def row(title: str, values: list) -> str:
        # COCO says -1 where there is nothing to measure.
        cells = [
            value if isinstance(value, str) else '-' if value in (None, -1) else f'{value:.4g}' for value in values
        ]
        return f'{title:<6}' + ''.join(f'{cell:>8}' for cell in cells)

    columns = {'AP': '', 'AP50': '_50', 'AP75': '_75', 'AP_S': '_s', 'AP_M': '_m', 'AP_L': '_l'}
    rows = []
    for title, kind in (('box', 'bbox'), ('mask', 'segm')):
        prefix = next((key[: -len('mAP')] for key in metrics if key.endswith(f'{kind}_mAP')), None)
        if prefix is not None:
            rows.append(row(title, [metrics.get(f'{prefix}mAP{suffix}') for suffix in columns.values()]))
    if rows:
        return '\n'.join([row('', list(columns)), *rows])
    if 'mIoU' in metrics:
        names = [name for name in ('mIoU', 'mAcc', 'aAcc') if name in metrics]
        return '\n'.join([row('', names), row('', [metrics[name] for name in names])])
    return '\n'.join(f'{name:<30} {value}' for name, value in metrics.items())


class MetricsHook(Hook):
    """Keeps the metrics of the last validation or test."""

    metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or _nothing_detected(runner.val_loop.evaluator)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or _nothing_detected(runner.test_loop.evaluator)


def _nothing_detected(evaluator: Evaluator) -> dict[str, float] | None:
    """COCO's metrics of no detection at all: AP is 0, where mmdet's CocoMetric returns nothing."""
    coco = [metric for metric in evaluator.metrics if type(metric).__name__ == 'CocoMetric']
    if coco:
        print('\nno detection reached the score threshold (test_cfg.rcnn.score_thr): every AP is 0')
    return {
        f'{metric.prefix}/{kind}_{name}': 0.0
        for metric in coco
        for kind in metric.metrics
        for name in ('mAP', 'mAP_50', 'mAP_75')
    } or None


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
    runner.register_hook(ConvNeXtLoadHook(whole_model=task == 'test'))
    getattr(runner, task)()
    if not is_main_process():
        return
    if kept.metrics is None:
        print(f'\nnothing was evaluated in this run (iteration {runner.iter})')
        return
    path = Path(runner.work_dir) / 'metrics.json'
    path.write_text(json.dumps({key: float(value) for key, value in kept.metrics.items()}, indent=2) + '\n')
    print(f'\n{metrics_table(kept.metrics)}\n\nwritten to {path}')


def read_config(args: argparse.Namespace) -> Config:
    """The config that ``args`` of :func:`common_arguments` name, with their changes and a work folder.

    Raises:
        UserError: There is no such file, or a toolkit that it inherits from is not installed.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_file(args.config, 'config')
    with _install_errors():
        cfg = Config.fromfile(args.config)
    options = dict(args.cfg_options)
    if 'data_root' in options and 'data_root' in cfg:
        old, new = (root.rstrip('/') for root in (cfg.data_root, options.pop('data_root')))
        # cfg._cfg_dict: a Config does not let its own dict be exchanged.
        cfg.merge_from_dict(_moved(cfg._cfg_dict.to_dict(), old, new))
    cfg.merge_from_dict(options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def _moved(value: Any, old: str, new: str) -> Any:
    """``value`` with every path below the folder ``old`` moved to ``new``."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, old, new) for item in value)
    if isinstance(value, str) and (value == old or value.startswith(old + '/')):
        return new + value[len(old) :]
    return value


def check_file(path: str, what: str) -> None:
    """Raise a UserError where there is no file ``path``."""
    if '://' not in path and not Path(path).is_file():
        raise UserError(f'there is no {what} file {path}: check the path (working folder: {Path.cwd()})')


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


def check_toolkit(scope: str) -> None:
    """Raise a UserError where mmcv with operators or the toolkit ``scope`` with its models cannot be imported."""
    with _install_errors():
        import mmcv

        try:
            importlib.import_module('mmcv._ext')
        except ImportError as error:
            raise UserError(
                f'mmcv {mmcv.__version__} is installed without its compiled operators ({error}): '
                f'`pip uninstall mmcv`, then {INSTALL_MMCV}'
            ) from error
        importlib.import_module(scope)
        if importlib.util.find_spec(f'{scope}.models'):
            importlib.import_module(f'{scope}.models')


# What a mixed-up environment says, and what mends it.
INSTALL_PROBLEMS = (
    (
        r'MMCV==(\S+) is used but incompatible.*?(mmcv>=\S+?),? (<\S+\d)',
        rf'mmcv \1 is installed, the toolkit wants \2, \3: `pip uninstall mmcv`, then {INSTALL_MMCV}',
    ),
    (
        r'MMEngine==(\S+) is used but incompatible.*?(mmengine>=\S+?),? (<\S+\d)',
        r"mmengine \1 is installed, the toolkit wants \2, \3: pip install 'mmengine>=0.10.7,<1'",
    ),
    (r"No module named 'mmcv'", f'mmcv is not installed: {INSTALL_MMCV}'),
    (
        r"No module named '(?:mmdet|mmseg)'|(?:mmdet|mmseg|mmsegmentation) is not installed",
        "the toolkit of this config is not installed: `make install`, or pip install 'convnext-dense[openmmlab]' and "
        '`python tools/install_mmcv.py`',
    ),
    (r"No module named 'pkg_resources'", "setuptools is too new for this toolkit: pip install 'setuptools<80'"),
    (r"No module named '(ftfy|regex)'", r'mmsegmentation needs \1: pip install \1'),
    (
        r'torchvision::nms does not exist',
        'torch and torchvision do not belong together: install the pair of constraints.txt, or `make clean install`',
    ),
    (r'Adafactor is already registered', "this mmengine is too old for this torch: pip install 'mmengine>=0.10.7'"),
)


@contextmanager
def _install_errors() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for pattern, sentence in INSTALL_PROBLEMS:
            match = re.search(pattern, f'{error}', re.S)
            if match:
                raise UserError(match.expand(sentence)) from error
        raise


def _replace_sync_bn(value: Any) -> bool:
    """SyncBN -> BN in every ``norm_cfg`` below; True if there was one."""
    if isinstance(value, dict):
        found = value.get('type') in ('SyncBN', 'MMSyncBN')
        if found:
            value['type'] = 'BN'
        return any([found, *map(_replace_sync_bn, value.values())])
    return isinstance(value, (list, tuple)) and any([_replace_sync_bn(item) for item in value])


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
