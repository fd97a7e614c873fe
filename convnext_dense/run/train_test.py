"""From a config and options to a finished run of mmengine's runner and a table of its metrics.

``tools/train.py`` and ``tools/test.py`` are the command lines of this module, one pair for mmdet and mmseg.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from convnext_dense.data_check.loading_errors import name_paths_in_errors
from convnext_dense.data_check.splits import as_list, innermost_datasets
from convnext_dense.durable import write_durably
from convnext_dense.engine.finite import FiniteModelHook, FiniteStepsHook
from convnext_dense.engine.inference_hook import PrepareForInferenceHook
from convnext_dense.engine.load_hook import attach_load_hook
from convnext_dense.engine.loops import RESUMED_ITERATION
from convnext_dense.engine.prediction_files import DrawHook, KeepLabelMapsHook
from convnext_dense.engine.preemption import PreemptionHook, SignalFlag, end_with_parent
from convnext_dense.engine.random_state import RandomStateHook
from convnext_dense.errors import UserError
from convnext_dense.outputs import (
    check_file_output,
    check_folder_output,
    check_work_folder,
    name_work_folder,
    whole_files,
)
from convnext_dense.run.data import check_paths, prepare_data
from convnext_dense.run.final_report import write_final_report
from convnext_dense.run.machine import describe_operators, fit_to_machine
from convnext_dense.run.metrics import MetricsHook, metrics_json, metrics_table
from convnext_dense.run.options import nested_dicts, read_config
from convnext_dense.run.resume_settings import compare_settings
from convnext_dense.run.settings import settle, torch_errors
from convnext_dense.run.watching import ProgressHook, add_trackers, memory_errors, use_own_visualizer
from convnext_dense.run.work_dir import (
    ReplaceHook,
    Start,
    choose_start,
    claimed,
    default_work_dir,
    is_first_process,
    use_durable_checkpoints,
    use_resumable_loop,
)
from convnext_dense.toolkits import check_toolkit
from convnext_dense.weights.safe_reading import only_safe_loading
from convnext_dense.weights.sources import SCHEME, check_source

TTA_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # official multi-scale test


def train(
    config: str,
    *,
    cfg_options: Sequence[str] = (),
    work_dir: str | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    skip_nonfinite: int = 0,
    data_check: bool = True,
    decode: bool = False,
    overwrite: bool = False,
    track: Sequence[str] = (),
    report: bool = False,
) -> dict[str, float]:
    """Train a detector or segmentor; print the metrics of the last validation and write them to ``metrics.json``.

    Args:
        config: A config file of mmdet or mmseg.
        cfg_options: Changes of the config, see :func:`convnext_dense.run.options.read_config`.
        work_dir: Folder for logs, checkpoints and metrics; default ``work_dirs/FOLDER/NAME`` of the config.
        launcher: How several processes were started: 'none', 'pytorch', 'slurm' or 'mpi'.
        local_rank: Number of this process on its machine, for launchers that set no ``LOCAL_RANK``.
        amp: Use mixed precision; in bfloat16 on CPUs, unless the config says otherwise.
        auto_scale_lr: Scale the learning rate linearly with the batch over all GPUs.
        resume: A checkpoint to continue from, or 'auto' for the newest one in the work folder that can be read.
        skip_nonfinite: How many steps in a row with a loss or gradient that is not finite are skipped; one more stops.
        data_check, decode: Check the data first, and decode every image in that; see
            :func:`convnext_dense.data_check.check.check_data`.
        overwrite: Replace the checkpoints of an earlier run in the work folder; without it they end the program.
        track: Trackers of experiments, see :data:`convnext_dense.run.watching.TRACKERS`.
        report: Write a page about the training into the work folder at its end, if matplotlib is installed; see
            ``convnext_dense.run.final_report.write_final_report``.

    Returns:
        The metrics of the last validation by mmengine's names; empty without one, and in all processes but the first.

    Raises:
        UserError: A file does not exist, or an option does not go with the config.
    """
    if launcher != 'none':
        end_with_parent()
    cfg = _read_run_config(config, cfg_options, work_dir, launcher, local_rank)
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        if get_device() == 'cpu':
            cfg.optim_wrapper.setdefault('dtype', 'bfloat16')  # otherwise fit_to_machine takes it for float16
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(
                f'--auto-scale-lr needs the batch that the rate of {config} was made for: add '
                '--cfg-options auto_scale_lr.base_batch_size=16'
            )
        cfg.auto_scale_lr.enable = True
    start = choose_start(cfg, config, resume, overwrite)
    check_paths(cfg, 'train')
    if cfg.get('val_dataloader'):
        check_paths(cfg, 'val')
    add_trackers(cfg, track)
    start.notes += [*use_durable_checkpoints(cfg), *use_resumable_loop(cfg, start)]
    flag = SignalFlag()
    hooks = [FiniteStepsHook(skip_nonfinite), RandomStateHook(), ReplaceHook(start.replaced), PreemptionHook(flag)]
    with name_work_folder(cfg.work_dir), claimed(cfg.work_dir):
        prepare_data(cfg, ('train', 'val'), launcher, check=data_check, decode=decode)
        with flag.listening():
            metrics = _run(cfg, launcher, 'train', start, hooks)
    if report and is_main_process():
        write_final_report(Path(cfg.work_dir))
    return metrics


def test(
    config: str,
    checkpoint: str,
    *,
    cfg_options: Sequence[str] = (),
    work_dir: str | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
    tta: bool = False,
    show_dir: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    data_check: bool = True,
    decode: bool = False,
) -> dict[str, float]:
    """Test a detector or segmentor; print its metrics and write them to ``metrics.json``.

    Args:
        config, cfg_options, work_dir, launcher, local_rank, data_check, decode: As for :func:`train`.
        checkpoint: A file with every tensor of the model.
        tta: Use the multi-scale and flip test, see :func:`.use_test_time_augmentation`.
        show_dir: Draw predictions beside ground truth into this folder; sub-folders of the images are kept.
        out: Keep the predictions: a .pkl file for detectors, a folder of label maps for segmentors.
        overwrite: Replace what is in ``show_dir`` and ``out``.

    Returns:
        The metrics by mmengine's names; empty in all processes but the first.

    Raises:
        UserError: A file does not exist, an option does not go with the config, or a place cannot be written or is in
            use.
    """
    check_source(checkpoint, 'checkpoint')
    cfg = _read_run_config(config, cfg_options, work_dir, launcher, local_rank)
    if tta:
        use_test_time_augmentation(cfg)
    check_work_folder(Path(cfg.work_dir))
    if not cfg.get('test_dataloader'):
        raise UserError('the config has no test_dataloader, which a test reads: add it')
    hooks: list[Hook] = []
    if show_dir:
        check_folder_output(Path(show_dir), overwrite=overwrite)
        hooks.append(_draw_into(cfg, Path(show_dir).absolute()))
    with ExitStack() as written:
        if out and cfg.get('default_scope') == 'mmseg':
            check_folder_output(Path(out), overwrite=overwrite)
            hooks.append(KeepLabelMapsHook(Path(out).absolute(), image_folders(cfg, 'test')))
        elif out:
            _keep_detections(cfg, out, overwrite, written)
        check_paths(cfg, 'test')
        prepare_data(cfg, ('test',), launcher, check=data_check, decode=decode)
        return _run(cfg, launcher, 'test', Start(checkpoint), hooks)


def _read_run_config(
    config: str, cfg_options: Sequence[str], work_dir: str | None, launcher: str, local_rank: int
) -> Config:
    """Read the config of a run and set its work folder and launcher."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg = read_config(config, cfg_options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or default_work_dir(config)
    return cfg


def use_test_time_augmentation(cfg: Config) -> None:
    """Change ``cfg`` to a test on augmented images.

    Segmentors get the official test on whole images: at 0.5 to 1.75 times the test scale, each flipped too. (The
    ``tta_pipeline`` of mmseg scales the raw image instead of the test scale.) Detectors get the ``tta_model`` and
    ``tta_pipeline`` of their config.

    Raises:
        UserError: The model or its test pipeline cannot be tested so.
    """
    if 'decode_head' in cfg.model:
        _augment_segmentor(cfg)
    else:
        _augment_detector(cfg)


def _augment_detector(cfg: Config) -> None:
    if has_masks(cfg):
        raise UserError(
            '--tta: mmdet can merge boxes of augmented images, but not masks, so a detector with masks '
            'has no such test: leave out --tta'
        )
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UserError('--tta: the config defines no tta_model and tta_pipeline: add them or leave out --tta')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def has_masks(cfg: Config) -> bool:
    """Return whether a detector has a mask head at any depth; ``mask_head=None`` is none."""
    return any(part.get('mask_head') is not None for part in nested_dicts(cfg.model))


def _augment_segmentor(cfg: Config) -> None:
    pipeline = cfg.test_dataloader.dataset.pipeline
    resize_indices = [i for i, step in enumerate(pipeline) if step.type == 'Resize' and 'scale' in step]
    if len(resize_indices) != 1:
        raise UserError(
            f'--tta scales the Resize(scale=...) of the test pipeline, which has {len(resize_indices)} of them: '
            'give it one'
        )
    index = resize_indices[0]
    resize = pipeline[index]
    width, height = resize.scale  # mmcv writes (width, height)
    resizes = []
    for ratio in TTA_RATIOS:
        resizes.append(dict(resize, scale=(int(width * ratio), int(height * ratio))))
    flips = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)]
    later_steps = [[step] for step in pipeline[index + 1 :]]
    augmentation = dict(type='TestTimeAug', transforms=[resizes, flips, *later_steps])
    cfg.test_dataloader.dataset.pipeline = [*pipeline[:index], augmentation]
    cfg.model.test_cfg = ConfigDict(mode='whole')
    cfg.model = ConfigDict(cfg.get('tta_model') or dict(type='SegTTAModel'), module=cfg.model)


@only_safe_loading()
def _run(
    cfg: Config, launcher: str, task: Literal['train', 'test'], start: Start, hooks: Sequence[Hook] = ()
) -> dict[str, float]:
    """Run mmengine's runner with our hooks, print its metrics, write them to ``metrics.json`` and return them."""
    check_toolkit(cfg.get('default_scope') or 'mmengine')
    lines = [*describe_operators(), *fit_to_machine(cfg, launcher), *settle(cfg, launcher)]
    if launcher == 'pytorch' and get_device() == 'cpu' and not is_distributed():
        torch.distributed.init_process_group('gloo')  # mmengine's own set-up chooses a GPU first
    # What is loaded is not in the config, which the runner writes to the work folder: that file can be trained again.
    cfg.resume, cfg.load_from = False, (cfg.get('load_from') or '').removeprefix(SCHEME) or None
    use_own_visualizer(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner._resume = start.resume
    runner._load_from = SCHEME + start.load_from if start.load_from else None  # read safely, from every source
    runner.message_hub.update_info(RESUMED_ITERATION, start.meta.get('iter', 0), resumed=False)
    if start.resume:
        start.notes += compare_settings(start.meta.get('cfg'), runner.cfg.pretty_text, start.meta.get('seed'))
    if is_main_process():  # known only now
        print(*lines, *start.notes, sep='\n', flush=True)
    name_paths_in_errors(runner)
    kept = MetricsHook()
    runner.register_hook(kept)
    attach_load_hook(runner, whole_model=task == 'test')
    for hook in (*hooks, PrepareForInferenceHook(), FiniteModelHook()):
        runner.register_hook(hook)
    if sys.stdout.isatty():
        runner.register_hook(ProgressHook())
    with memory_errors(), torch_errors():
        getattr(runner, task)()
    if not is_main_process():
        return {}
    if kept.metrics is None:
        print(f'\nnothing was evaluated in this run (iteration {runner.iter})')
        return {}
    path = Path(runner.work_dir) / 'metrics.json'
    text, undefined = metrics_json(kept.metrics)
    write_durably(path, text)
    if undefined:
        print(
            f'\nnot defined, null in {path.name}: {", ".join(undefined)} (nothing to measure it on, as for a class '
            'that no label of the split has)'
        )
    print(f'\n{metrics_table(kept.metrics)}\n\nwritten to {path}')
    return {key: float(value) for key, value in kept.metrics.items()}


def _draw_into(cfg: Config, folder: Path) -> DrawHook:
    """Return the hook that draws predictions beside ground truth for every test image."""
    if not cfg.get('visualizer'):
        raise UserError('--show-dir: the config has no visualizer, which draws: add it')
    hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
    return DrawHook(folder, image_folders(cfg, 'test'), hook.get('score_thr', 0.3))


def image_folders(cfg: Config, split: str) -> list[Path]:
    """Return the local folders that the images of a split are in, as far as its config names them."""
    folders = []
    for _, dataset in innermost_datasets(cfg[f'{split}_dataloader']['dataset']):
        prefixes = dataset.get('data_prefix') or {}
        root = str(dataset.get('data_root') or '')
        if '://' not in root:
            folders.append(Path(root) / str(prefixes.get('img') or prefixes.get('img_path') or ''))
    return folders


def _keep_detections(cfg: Config, out: str, overwrite: bool, written: ExitStack) -> None:
    """Let the detections be written as one pickle, as mmdet does, which gets its name when ``written`` is closed."""
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {out}: detections are written as one pickle, give a name that ends in .pkl')
    check_file_output(Path(out), overwrite=overwrite)
    # The first process writes; the others only have to have the same evaluators.
    part = written.enter_context(whole_files(Path(out))) if is_first_process() else out
    cfg.test_evaluator = [*as_list(cfg.get('test_evaluator')), dict(type='DumpDetResults', out_file_path=str(part))]
