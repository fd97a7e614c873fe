"""Checks of one training: its config, data, weights and model, and whether memory and disk are enough for it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from convnext_dense.complexity import build_on_meta
from convnext_dense.data_check.check import check_data, follow_names
from convnext_dense.data_check.config import check_config
from convnext_dense.data_check.findings import Finding
from convnext_dense.data_check.splits import Split, splits_of
from convnext_dense.errors import UserError
from convnext_dense.run.data import check_paths
from convnext_dense.run.doctor import machine
from convnext_dense.run.doctor.diagnosis import Diagnosis, gigabytes, note, ok, problem, problem_of
from convnext_dense.run.doctor.estimate import Sizes, image_size, measure, number_of_checkpoints
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.options import nested_dicts, read_config
from convnext_dense.run.work_dir import default_work_dir, training_checkpoints
from convnext_dense.toolkits import check_toolkit
from convnext_dense.weights.sources import SCHEME, locate, read

SPLITS = ('train', 'val')
TIMEOUT = 5  # seconds for the answer of a server
RECORDS = 3  # named in a diagnosis of the data


@dataclass
class Training:
    """A training that is checked, and what earlier checks have made of it.

    Attributes:
        config: The config file.
        cfg_options: Changes of it.
        work_dir: Where the training would write; None: as it chooses itself.
        data_check, decode: Check the data, and decode every image in that.
        cfg: The config; set by :func:`config`.
        findings: Of what the config says of its data; set by :func:`settings`.
        model: On the meta device; set by :func:`model`.
        sizes: Set by :func:`optimizer`.
    """

    config: str
    cfg_options: Sequence[str] = ()
    work_dir: str | None = None
    data_check: bool = True
    decode: bool = False
    cfg: Config = field(default_factory=Config)
    findings: list[Finding] = field(default_factory=list)
    model: nn.Module = field(default_factory=nn.Module)
    sizes: Sizes = Sizes(0, 0, 0, 0, None)


def config(training: Training) -> Iterator[Diagnosis]:
    """Whether the config can be read, and has what a training needs."""
    training.cfg = read_config(training.config, training.cfg_options)
    training.cfg.work_dir = training.work_dir or training.cfg.get('work_dir') or default_work_dir(training.config)
    absent = [key for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper') if not training.cfg.get(key)]
    if absent:
        yield problem(
            f'{training.config} has no {", ".join(absent)}',
            'a training needs them',
            'let it inherit from a recipe, as `convnext-dense new-config DATA` writes it',
        )
    else:
        yield ok(f'{training.config} can be read')


def work_folder(training: Training) -> Iterator[Diagnosis]:
    """As :func:`convnext_dense.run.doctor.machine.work_folder`, of this training."""
    yield from machine.work_folder(Path(training.cfg.work_dir))


def earlier_run(training: Training) -> Iterator[Diagnosis]:
    """Whether the work folder holds an earlier run."""
    folder = Path(training.cfg.work_dir)
    files = training_checkpoints(folder, training.cfg)
    if files:
        yield note(
            f'{folder} holds checkpoints of an earlier run, {files[-1].name} the last',
            'a new training refuses to replace them',
            'continue that run by --resume, replace it by --overwrite, or give another --work-dir',
        )
    else:
        yield ok(f'{folder} holds no earlier run')


def toolkit(training: Training) -> Iterator[Diagnosis]:
    """Whether the toolkit of the config can be imported, and what of the config this machine cannot run as it is."""
    scope = training.cfg.get('default_scope') or 'mmengine'
    check_toolkit(scope)
    yield ok(f'{scope} can be imported')
    for change in fit_to_machine(training.cfg, 'none'):
        yield note(change, 'the training differs in this from the same config elsewhere', 'nothing, or train on a GPU')


def settings(training: Training) -> Iterator[Diagnosis]:
    """Whether what the config says of its data goes together: classes, heads, evaluators. No file is opened."""
    cfg = training.cfg
    names = [name for name in SPLITS if cfg.get(f'{name}_dataloader')]
    follow_names(cfg, names)
    splits: list[Split] = []
    for name in names:
        found, findings = splits_of(cfg, name)
        splits += found
        training.findings += findings
    training.findings += check_config(cfg, splits)
    yield from map(_of_finding, training.findings)
    if not training.findings:
        classes = splits[0].classes if splits else None
        yield ok(f'{len(classes)} classes in the data and in every head' if classes else 'nothing found')


def data(training: Training) -> Iterator[Diagnosis]:
    """What the data check of a training finds in files: annotations, images, label maps."""
    if not training.data_check or any(finding.fatal for finding in training.findings):
        return
    names = [name for name in SPLITS if training.cfg.get(f'{name}_dataloader')]
    for name in names:
        check_paths(training.cfg, name)
    findings = check_data(training.cfg, names, decode=training.decode)
    new = [finding for finding in findings if finding not in training.findings]
    yield from dict.fromkeys(map(_of_finding, new))
    if not any(finding.fatal for finding in new):
        yield ok(f'the {" and ".join(names)} data can be used')


def _of_finding(finding: Finding) -> Diagnosis:
    records = ', '.join(finding.records[:RECORDS])
    if len(finding.records) > RECORDS:
        records += f' and {len(finding.records) - RECORDS} more'
    what = f'{finding.source}: {finding.what}' + (f' ({records})' if records else '')
    if finding.fatal:
        return problem(what, 'a training stops at it before the first iteration', finding.fix or 'correct the file')
    return note(
        what, 'the training goes on without it, or treats it as said', finding.fix or 'nothing, if that is meant'
    )


def weights(training: Training) -> Iterator[Diagnosis]:
    """Whether every file of weights that the config names is here and can be read, or can be downloaded."""
    sources = [part['checkpoint'] for part in nested_dicts(training.cfg.model) if _is_pretrained(part)]
    if training.cfg.get('load_from'):
        sources.append(training.cfg.load_from.removeprefix(SCHEME))
    for source in dict.fromkeys(sources):
        try:
            yield _weights_of(source)
        except UserError as error:
            yield problem_of(error, 'the training ends when it loads them')
    if not sources:
        yield note(
            'the config names no pretrained weights',
            'a training from random weights needs many times the images and iterations',
            "--cfg-options \"model.backbone.init_cfg={'type':'Pretrained','checkpoint':'convnext_tiny_1k_224'}\"",
        )


def _is_pretrained(part: dict) -> bool:
    return part.get('type') == 'Pretrained' and isinstance(part.get('checkpoint'), str)


def _weights_of(source: str) -> Diagnosis:
    place = locate(source)
    if place is None:
        return note(
            f'{source} is loaded by mmengine itself',
            'whether it can be had was not checked',
            'nothing; the training downloads it, or says what fails',
        )
    if isinstance(place, Path):
        read(str(place))
        return ok(f'{source} is {place}')
    reason = why_not_reachable(place)
    if reason:
        return problem(
            f'{source} is not on this machine, and its server does not give it ({reason})',
            'the training ends when it loads them',
            'get the file on another machine, put it into a folder and export CONVNEXT_DENSE_WEIGHTS=FOLDER; or train '
            'from random weights: --cfg-options model.backbone.init_cfg=None',
        )
    return ok(f'{source} is downloaded when the training starts, from {place}')


def why_not_reachable(url: str) -> str:
    """Return why a server does not have a file; empty if it has. The file itself is not downloaded."""
    request = urllib.request.Request(url, method='HEAD', headers={'User-Agent': 'convnext-dense'})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return ''
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        return ' '.join(str(error).split())


def model(training: Training) -> Iterator[Diagnosis]:
    """Whether the model can be built."""
    cfg = training.cfg
    if cfg.get('data_preprocessor'):  # as the runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    try:
        training.model = build_on_meta(cfg)
    except UserError:
        raise
    except Exception as error:  # what a constructor raises for arguments that do not fit
        yield problem(
            f'the model cannot be built: {" ".join(str(error).split())[:300] or type(error).__name__}',
            'the training ends with the same error',
            'correct that part of the model in the config, or change it by --cfg-options',
        )
        return
    count = sum(param.numel() for param in training.model.parameters())
    yield ok(f'{type(training.model).__name__} with {count / 1e6:.1f} million parameters')


def optimizer(training: Training) -> Iterator[Diagnosis]:
    """Whether the optimizer of the config can be built for the model."""
    try:
        training.sizes = measure(training.model, training.cfg, on_cpu=get_device() == 'cpu')
    except UserError:
        raise
    except Exception as error:
        yield problem(
            f'the optimizer cannot be built: {" ".join(str(error).split())[:300] or type(error).__name__}',
            'the training ends with the same error',
            'correct optim_wrapper in the config, or change it by --cfg-options',
        )
        return
    sizes = training.sizes
    yield ok(f'{training.cfg.optim_wrapper.optimizer.type}: {gigabytes(sizes.optimizer)} of state')


def training_memory(training: Training) -> Iterator[Diagnosis]:
    """Whether the memory of the GPU, or of the machine, is enough by an estimate."""
    sizes = training.sizes
    if torch.cuda.is_available():
        where, available = 'the GPU', torch.cuda.mem_get_info()[0]
    else:
        where, available = 'this machine', machine.available_memory() or 0
    batch = training.cfg.train_dataloader.get('batch_size') or 1
    fixed = f'{gigabytes(sizes.fixed)} for weights, gradients and optimizer'
    saved = 'what the backward pass needs is not known'
    if sizes.activations is not None:
        height, width = image_size(training.cfg) or (0, 0)
        saved = (
            f'about {gigabytes(sizes.activations)} for the backward pass of {batch} images of {height}x{width}, '
            'without the loss'
        )
    what = f'the training needs {fixed}, and {saved}; {where} has {gigabytes(available)}'
    fix = (
        'use one or more of --amp, --cfg-options model.backbone.memory=checkpoint and --cfg-options '
        'train_dataloader.batch_size=1 (with --auto-scale-lr)'
    )
    if sizes.fixed > available:
        yield problem(what, 'it ends for lack of memory before the first iteration', f'train a smaller arch, or {fix}')
    elif sizes.fixed + (sizes.activations or 0) > available:
        yield note(what, 'it will probably end for lack of memory', fix)
    else:
        yield ok(what)


def disk(training: Training) -> Iterator[Diagnosis]:
    """Whether the checkpoints that the training keeps fit on the disk of the work folder."""
    sizes, folder = training.sizes, Path(training.cfg.work_dir)
    resumable, best = number_of_checkpoints(training.cfg)
    needed = resumable * sizes.checkpoint + best * (sizes.weights + sizes.averaged)
    free = machine.free_space(folder)
    what = (
        f'{resumable} checkpoints of {gigabytes(sizes.checkpoint)}'
        + (f' and {best} best ones' if best else '')
        + f' take {gigabytes(needed)}; the disk of {folder} has {gigabytes(free)} free'
    )
    if needed > free:
        yield problem(
            what,
            'the training ends when the disk is full',
            'make room, give a folder on another disk by --work-dir, or keep fewer: --cfg-options '
            'default_hooks.checkpoint.max_keep_ckpts=2',
        )
    else:
        yield ok(what)


# In the order in which they run; after a problem of one that is needed, the others would only repeat it.
CHECKS = (
    config,
    work_folder,
    earlier_run,
    toolkit,
    settings,
    data,
    weights,
    model,
    optimizer,
    training_memory,
    disk,
)
NEEDED = (config, toolkit, model, optimizer)
