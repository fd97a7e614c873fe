"""The work folder of a training: whose it is, what is in it, and where a run starts from."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from convnext_dense.durable import TEMPORARY
from convnext_dense.engine.checkpoints import POINTER, DurableCheckpointHook
from convnext_dense.engine.loops import ResumableEpochLoop, ResumableIterLoop
from convnext_dense.engine.training_state import check_training_state
from convnext_dense.errors import DiagnosableError, UserError
from convnext_dense.run.options import nested_dicts
from convnext_dense.weights.safe_reading import clause, read_file
from convnext_dense.weights.sources import SCHEME, check_source, read

LOOPS = {
    'EpochBasedTrainLoop': ResumableEpochLoop,
    'IterBasedTrainLoop': ResumableIterLoop,
    ResumableEpochLoop.__name__: ResumableEpochLoop,  # in a config that a run has dumped
    ResumableIterLoop.__name__: ResumableIterLoop,
}
LOCK = 'train.lock'
RANK_VARIABLES = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


@dataclass
class Start:
    """Where a run starts from.

    Attributes:
        load_from: A checkpoint, or None for the weights of the config.
        resume: Whether the state of a training in it is taken too.
        notes: What the user has to know about the choice.
        meta: Of the checkpoint that is resumed.
        replaced: Files of an earlier run, which are deleted when the training begins. None if that run is resumed.
    """

    load_from: str | None
    resume: bool = False
    notes: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    replaced: list[Path] = field(default_factory=list)


def default_work_dir(config: str) -> str:
    """Return ``work_dirs/FOLDER/NAME`` for a config: recipes of one name in two folders do not share one."""
    path = Path(config.rpartition('::')[2]).absolute()
    return str(Path('work_dirs') / path.parent.name / path.stem)


@contextmanager
def claimed(work_dir: str) -> Iterator[None]:
    """Keep the folder for this training, as long as its process lives.

    The lock is one of the operating system, which releases it whatever ends the process: a file that a dead process
    left is taken over. Temporary files of a run that was killed are removed. Of several processes the first one locks.

    Raises:
        UserError: Another training writes there, or the folder cannot be written to.
    """
    if not is_first_process():
        yield
        return
    folder = Path(work_dir)
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open('a+')
    except OSError as error:
        raise DiagnosableError(
            f'the work folder {folder} cannot be written to ({error.strerror}): give another --work-dir'
        ) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                if _owner_lives(path):
                    raise UserError(_in_use(folder, path)) from error
            else:
                raise UserError(_in_use(folder, path)) from error
        if os.fstat(file.fileno()).st_nlink == 0:  # its last owner has deleted it since it was opened
            raise UserError(_in_use(folder, path))
        file.truncate(0)
        file.write(json.dumps(dict(host=socket.gethostname(), pid=os.getpid())) + '\n')
        file.flush()
        for temporary in folder.glob(f'*{TEMPORARY}'):
            temporary.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner_lives(path: Path) -> bool:
    owner = _owner(path)
    if owner.get('host') != socket.gethostname() or not isinstance(owner.get('pid'), int):
        return bool(owner)  # another machine cannot be asked
    try:
        os.kill(owner['pid'], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return owner['pid'] != os.getpid()


def _in_use(folder: Path, path: Path) -> str:
    owner = _owner(path)
    who = f'process {owner.get("pid", "?")} on {owner.get("host", "another machine")}'
    return f'another training ({who}) writes to the work folder {folder}: wait for it, or give another --work-dir'


def is_first_process() -> bool:
    """Return whether this is the first process of a distributed run, or the only one."""
    return all(os.environ.get(name, '0') == '0' for name in RANK_VARIABLES)


def choose_start(cfg: Config, config: str, resume: str | None, overwrite: bool) -> Start:
    """Decide where a training starts from.

    Args:
        cfg: The config, with its work folder.
        config: Its file.
        resume: A checkpoint to continue from, 'auto' for the newest that can be read in the work folder, or None.
        overwrite: Whether a fresh start may replace the checkpoints in the work folder.

    Raises:
        UserError: A fresh start in a folder with checkpoints, or a checkpoint that cannot be resumed.
    """
    folder = Path(cfg.work_dir)
    load_from = cfg.get('load_from')
    if load_from:
        load_from = load_from.removeprefix(SCHEME)  # of a config that an earlier version dumped
    if resume is None and cfg.get('resume'):
        resume, load_from = load_from or 'auto', None
    schedules = bool(cfg.get('param_scheduler'))
    if resume and overwrite:
        raise UserError('--resume continues the run that --overwrite deletes: give one of the two')
    if resume and resume != 'auto':
        check_source(resume, 'checkpoint')
        checkpoint = read(resume)
        check_training_state(checkpoint, resume, schedules, weights=False)
        return Start(resume, True, meta=checkpoint['meta'])
    files = training_checkpoints(folder, cfg)
    earlier = [*sorted(folder.glob('best_*.pth')), *files]
    if resume:
        start = _newest(folder, files, schedules)
        if start is not None:
            return start
        _refuse_if_elsewhere(folder, config, cfg)
        source = f'the load_from of the config, {load_from},' if load_from else 'the weights of the config'
        start = Start(
            load_from, notes=[f'nothing to resume in {folder}: the training starts from {source} at iteration 0']
        )
    elif earlier and not overwrite:
        if not is_first_process():
            return Start(load_from)  # the first process says why and ends the run
        names = ', '.join(path.name for path in earlier[-3:])
        raise UserError(
            f'{folder} holds checkpoints of an earlier run ({names}), which a new one would replace: continue that run '
            'by --resume, give another folder by --work-dir, or replace them by --overwrite'
        )
    else:
        start = Start(load_from, replaced=[*earlier, folder / POINTER])
    if start.load_from:
        check_source(start.load_from, 'checkpoint')
    return start


def training_checkpoints(folder: Path, cfg: Config) -> list[Path]:
    """Return the checkpoints of trainings in a work folder, by name: not the best ones, which hold no optimizer."""
    templates = {'epoch_{}.pth', 'iter_{}.pth'}
    for part in nested_dicts(dict(hooks=[*cfg.get('default_hooks', {}).values(), *cfg.get('custom_hooks', [])])):
        if isinstance(part.get('filename_tmpl'), str):
            templates.add(part['filename_tmpl'])
    patterns = [re.escape(template).replace(r'\{\}', r'(\d+)') for template in templates]
    found = []
    for path in folder.glob('*') if folder.is_dir() else ():
        number = next((match for match in (re.fullmatch(pattern, path.name) for pattern in patterns) if match), None)
        if number:
            found.append((int(number[1]) if number.groups() else 0, path))
    return [path for _, path in sorted(found)]


def _newest(folder: Path, files: list[Path], schedules: bool) -> Start | None:
    """Return the checkpoint with the most iterations that reads completely; None if there is no file.

    Raises:
        UserError: There are files, and none of them can be read.
    """
    readable, passed_over = [], {}
    for path in files:
        try:
            # Memory-mapped: the tensors are not read yet.
            checkpoint = read_file(path, verify=False)
            check_training_state(checkpoint, str(path), schedules)
            readable.append((checkpoint['meta']['iter'], path.stat().st_mtime, path, checkpoint['meta']))
        except (UserError, OSError) as error:
            passed_over[path.name] = clause(str(error))
    for _, _, path, meta in sorted(readable, key=lambda entry: entry[:2], reverse=True):
        try:
            read_file(path)
        except (UserError, OSError) as error:
            passed_over[path.name] = clause(str(error))
            continue
        notes = [f'resumed from {path}: epoch {meta["epoch"]}, iteration {meta["iter"]}']
        notes += [f'passed over {name}: {reason}' for name, reason in passed_over.items()]
        return Start(str(path), True, notes, meta)
    if not files:
        return None
    reasons = '; '.join(f'{name}: {reason}' for name, reason in passed_over.items())
    raise UserError(
        f'none of the {len(files)} checkpoints in {folder} can be resumed ({reasons}): give one by --resume '
        'CHECKPOINT, or start anew by --overwrite'
    )


def _refuse_if_elsewhere(folder: Path, config: str, cfg: Config) -> None:
    """Refuse to start from nothing where version 0.1.0 kept the run in ``work_dirs/NAME``."""
    old = Path('work_dirs') / Path(config).stem
    if folder == Path(default_work_dir(config)) and training_checkpoints(old, cfg):
        raise UserError(
            f'there is nothing to resume in {folder}, but {old}, the default of version 0.1.0, holds checkpoints: '
            f'continue that run by --work-dir {old}'
        )


class ReplaceHook(Hook):
    """Delete the checkpoints of an earlier run once the new one is about to train: its data and model are good."""

    priority = 'LOWEST'

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def before_train(self, runner: Runner) -> None:
        if not is_first_process():
            return
        for path in self.files:
            path.unlink(missing_ok=True)


def use_resumable_loop(cfg: Config, start: Start) -> list[str]:
    """Let our loops train where a config asks for mmengine's; return a line if it asks for another one."""
    train_cfg = cfg.train_cfg
    kind = train_cfg.get('type') or ('EpochBasedTrainLoop' if train_cfg.get('by_epoch', True) else 'IterBasedTrainLoop')
    loop = LOOPS.get(str(kind).removeprefix('mmengine.'))
    if loop is None:
        return [f'the training loop {kind} is not one of mmengine: a resumed run repeats or skips data inside an epoch']
    train_cfg.pop('by_epoch', None)
    train_cfg.type = loop.__name__
    if start.resume and cfg.get('randomness', {}).get('seed') is None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=start.meta.get('seed'))  # of the order of the data
    return []


def use_durable_checkpoints(cfg: Config) -> list[str]:
    """Let our hook write the checkpoints where a config names mmengine's; return a line if one is left as it is."""
    lines = []
    for part in nested_dicts(dict(hooks=[*cfg.get('default_hooks', {}).values(), *cfg.get('custom_hooks', [])])):
        if part.get('type') not in ('CheckpointHook', 'mmengine.CheckpointHook'):
            continue
        if part.get('backend_args') or part.get('file_client_args') or '://' in str(part.get('out_dir') or ''):
            lines.append('checkpoints go to a storage of their own, where they are written as mmengine does')
        else:
            part['type'] = DurableCheckpointHook.__name__
    return lines
