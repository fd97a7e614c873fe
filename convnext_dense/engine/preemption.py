"""A training that is asked to end saves first, and says so by its exit status."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from convnext_dense.durable import write_durably
from convnext_dense.engine.checkpoints import DurableCheckpointHook

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start it again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
PREEMPTED = 'preempted.json'  # in the work folder
# A file that the launch scripts read: torchrun's own exit status does not tell.
STATUS_VARIABLE = 'CONVNEXT_DENSE_PREEMPTED'
VALIDATION_IS_DUE = 'convnext_dense_validation_is_due'  # in mmengine's message hub, which checkpoints hold
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class SignalFlag:
    """Remembers that a signal asked this process to end.

    Attributes:
        signal: The name of the first signal, or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first signal is remembered, and the second has its ordinary effect."""
        if threading.current_thread() is not threading.main_thread():  # Python lets the main thread alone listen
            yield
            return
        before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number).name
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class OwnGroup:
    """Initialise a data worker in a process group of its own.

    A signal to the group of the training, such as Ctrl-C, would end its data workers before it can save: torch's own
    handler of SIGTERM does so. Workers end by themselves when their parent has ended.

    Args:
        init: What initialises the worker further.
    """

    def __init__(self, init: Callable[[int], None] | None) -> None:
        self.init = init

    def __call__(self, worker_id: int) -> None:
        os.setpgid(0, 0)
        if self.init is not None:
            self.init(worker_id)


class PreemptionHook(Hook):
    """Save and end with status 75 at the first iteration or batch of a validation after a signal in any process.

    What is saved in a validation is the training behind its last iteration; the run that resumes it begins with this
    validation. All processes ask each other after every iteration of the training. In a validation each goes at its
    own pace, maybe with fewer batches than another: it asks the others once, after its last batch, or as soon as it has
    got a signal, and then waits for them. Launchers signal all processes, so none waits for long. Models that are split
    over processes keep these in step, so they ask each other after every batch.

    Args:
        flag: Set by the signal handlers of this process.
    """

    priority = 'LOWEST'  # the iteration is complete, and CheckpointHook has saved it if it was to be saved

    def __init__(self, flag: SignalFlag) -> None:
        self.flag = flag
        self._may_ask = True  # every process has batches in this validation

    def before_train(self, runner: Runner) -> None:
        if is_main_process():
            (Path(runner.work_dir) / PREEMPTED).unlink(missing_ok=True)
        for loop in (runner.train_loop, runner.val_loop):
            dataloader = getattr(loop, 'dataloader', None)
            if isinstance(dataloader, DataLoader) and not isinstance(dataloader.worker_init_fn, OwnGroup):
                dataloader.worker_init_fn = OwnGroup(dataloader.worker_init_fn)
        is_due = runner.message_hub.runtime_info.get(VALIDATION_IS_DUE)
        runner.message_hub.update_info(VALIDATION_IS_DUE, False)
        if is_due and runner.val_loop is not None:
            print_log(f'the validation behind iteration {runner.iter} was cut short: it is run now', logger='current')
            runner.val_loop.run()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if _is_any(self.flag.signal is not None):
            self._save_and_end(runner, runner.iter + 1, 'go on with --resume')

    def before_val_epoch(self, runner: Runner) -> None:
        self._may_ask = not _is_any(len(runner.val_dataloader) == 0)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        batches_left = len(runner.val_dataloader) - 1 - batch_idx
        in_step = not isinstance(runner.model, DistributedDataParallel)  # or the only process
        asks = batches_left == 0 or (batches_left > 0 and (in_step or self.flag.signal is not None))
        if not (self._may_ask and asks and _is_any(self.flag.signal is not None)):
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(runner)  # it gives the weights back that are trained
        runner.message_hub.update_info(VALIDATION_IS_DUE, True)
        self._save_and_end(runner, runner.iter, 'go on with --resume, which runs this validation again')

    def _save_and_end(self, runner: Runner, iteration: int, advice: str) -> None:
        for hook in runner.hooks:
            if isinstance(hook, DurableCheckpointHook):
                hook.save_behind(runner, iteration)
        path = Path(runner.work_dir) / PREEMPTED
        if os.environ.get(STATUS_VARIABLE) and os.environ.get('LOCAL_RANK', '0') == '0':  # one per machine
            Path(os.environ[STATUS_VARIABLE]).write_text(f'{path}\n')
        if is_main_process():
            reason = self.flag.signal or 'a signal to another process'
            record = dict(signal=reason, iteration=iteration, time=time.strftime('%Y-%m-%dT%H:%M:%S'))
            write_durably(path, json.dumps(record) + '\n')
            print(f'\npreempted by {reason}: saved at iteration {iteration}; {advice}', flush=True)
        barrier()  # no process ends while another still saves
        sys.exit(EXIT_STATUS)


def _is_any(condition: bool) -> bool:
    """Return whether a condition holds in any of the processes; all of them have to call it."""
    if not is_distributed():
        return condition
    flag = torch.tensor(int(condition), dtype=torch.uint8, device=get_device())
    all_reduce(flag, 'max')
    return bool(flag.item())


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends: workers of a launcher that was killed would train on.

    Linux only; elsewhere nothing happens.
    """
    if not sys.platform.startswith('linux'):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)
