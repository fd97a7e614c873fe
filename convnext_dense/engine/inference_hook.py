"""Prepared inference inside mmengine's loops: blocks fold and pack their parameters once per validation or test."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from convnext_dense.models.block import prepare_for_inference, undo_prepare_for_inference


class PrepareForInferenceHook(Hook):
    """Prepare the ConvNeXt blocks of the model for the time in which a loop only predicts.

    mmengine's EMAHook exchanges the weights in ``before_val_epoch`` and exchanges them back in ``after_val_epoch``. The
    model is prepared at the first iteration, which comes after, and is undone with the last iteration, which comes
    before, whatever the priorities of the two hooks. It is never prepared while a checkpoint is saved or loaded.
    """

    prepared = False

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._prepare(runner)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx + 1 == len(runner.val_dataloader):
            self._undo(runner)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._prepare(runner)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx + 1 == len(runner.test_dataloader):
            self._undo(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._undo(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._undo(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._undo(runner)

    def _prepare(self, runner: Runner) -> None:
        if not self.prepared:
            prepare_for_inference(runner.model)
            self.prepared = True

    def _undo(self, runner: Runner) -> None:
        if self.prepared:
            undo_prepare_for_inference(runner.model)
            self.prepared = False
