"""Checkpoints that are whole on the disk before anything that they replace is deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from convnext_dense.durable import write_durably
from convnext_dense.engine.random_state import KEY as RANDOM_STATES
from convnext_dense.engine.random_state import RandomStateHook
from convnext_dense.errors import DiagnosableError

BACKEND = 'convnext_dense_durable'
POINTER = 'last_checkpoint'  # names the newest checkpoint of a work folder
REPLACED = 'replaced_ckpt_ids'  # in mmengine's message hub: what is deleted once the checkpoint with this is written


class DurableBackend(LocalBackend):
    """mmengine's local files, written durably.

    Attributes:
        deferred: Files whose removal was asked for while this was a list; None: remove at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.deferred: list[Path] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        path = Path(filepath)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, obj)
        except OSError as error:
            raise DiagnosableError(
                f'{path} could not be written ({error.strerror}): earlier checkpoints are as they were; make room or '
                'permit writing, then go on with --resume'
            ) from error

    def remove(self, filepath: str | Path) -> None:
        if self.deferred is None:
            Path(filepath).unlink(missing_ok=True)
        else:
            self.deferred.append(Path(filepath))


class DurableCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which deletes the old checkpoint first and writes the new one in place.

    Here a checkpoint is written to a temporary file, forced to the disk and renamed; then the pointer
    ``last_checkpoint`` likewise; the checkpoints that it replaces are deleted last. The options are those of
    CheckpointHook; files elsewhere than on a local disk are not supported.
    """

    best_ckpt_path: str | None
    by_epoch: bool
    filename_tmpl: str
    max_keep_ckpts: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend_args = dict(backend=BACKEND)
        self.random_states: list | None = None

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():  # a run that was killed before it could delete them
            for step in runner.message_hub.runtime_info.get(REPLACED, []):
                self.file_backend.remove(Path(self.out_dir) / self.filename_tmpl.format(step))
        if not self.save_best:
            return
        # The folder may have been moved or copied since: never delete the best checkpoint of another folder.
        if len(self.key_indicators) == 1:
            if self.best_ckpt_path:
                self.best_ckpt_path = str(Path(self.out_dir) / Path(self.best_ckpt_path).name)
            return
        for key, path in self.best_ckpt_path_dict.items():
            if path:
                self.best_ckpt_path_dict[key] = str(Path(self.out_dir) / Path(path).name)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.random_states is not None:
            checkpoint[RANDOM_STATES] = self.random_states

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self.random_states = _random_states(runner)  # of every process; the first one writes them
        outdated = self._keep(runner, step)
        runner.message_hub.update_info(REPLACED, outdated)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        self.file_backend.put(str(self.last_ckpt).encode(), Path(runner.work_dir) / POINTER)
        for replaced in outdated:
            path = Path(self.out_dir) / self.filename_tmpl.format(replaced)
            if path.is_dir():  # DeepSpeed writes folders
                self.file_backend.rmtree(path)
            else:
                self.file_backend.remove(path)

    def save_behind(self, runner: Runner, iteration: int) -> None:
        """Save the training behind an iteration as ``iter_N.pth``, apart from the files that are counted and replaced.

        Args:
            runner: Inside an epoch, or in the validation behind one.
            iteration: The number N of the last iteration, from 1.
        """
        template, by_epoch, kept = self.filename_tmpl, self.by_epoch, self.max_keep_ckpts
        self.filename_tmpl, self.by_epoch, self.max_keep_ckpts = 'iter_{}.pth', False, -1
        try:
            self._save_checkpoint_with_step(runner, iteration, dict(epoch=runner.epoch, iter=iteration))
        finally:
            self.filename_tmpl, self.by_epoch, self.max_keep_ckpts = template, by_epoch, kept

    def _keep(self, runner: Runner, step: int) -> list[int]:
        """Note that ``step`` is kept, and return the steps whose checkpoints are kept no longer."""
        if self.max_keep_ckpts <= 0:
            return []
        outdated = []
        if step not in self.keep_ckpt_ids:  # a new best one is written again under its own step
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return outdated

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        self.file_backend.deferred = []
        try:
            super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.deferred
        finally:
            self.file_backend.deferred = None
        new = {str(self.last_ckpt), str(getattr(self, 'best_ckpt_path', ''))}
        new.update(map(str, getattr(self, 'best_ckpt_path_dict', {}).values()))
        for path in outdated:
            if str(path) not in new:  # a resumed run writes the best of an epoch again
                self.file_backend.remove(path)


def _random_states(runner: Runner) -> list | None:
    """Return what the RandomStateHook of a run keeps, if it has one; all processes have to call it."""
    for hook in runner.hooks:
        if isinstance(hook, RandomStateHook):
            return hook.gather()
    return None
