"""mmengine's training loops, made to go on where a checkpoint was written, also inside an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from convnext_dense.engine.random_state import SeededBatchSampler, SeededDataset

RESUMED_ITERATION = 'convnext_dense_resumed_iteration'  # in mmengine's message hub


def seeded(runner: Runner, dataloader: Any) -> Any:
    """Return the config of a data loader whose samples have random numbers of their own; a built one as it is."""
    if not isinstance(dataloader, dict) or 'batch_size' not in dataloader:
        return dataloader
    loader = dict(dataloader)
    loader['batch_sampler'] = dict(
        type=SeededBatchSampler,
        seed=runner.seed,
        batch_sampler=loader.get('batch_sampler'),
        drop_last=loader.pop('drop_last', False),
    )
    loader['dataset'] = dict(type=SeededDataset, dataset=loader['dataset'])
    return loader


class ResumableEpochLoop(EpochBasedTrainLoop):
    """EpochBasedTrainLoop that goes on inside an epoch; that one begins the epoch anew."""

    def __init__(self, runner: Runner, dataloader: Any, **kwargs: Any) -> None:
        super().__init__(runner, seeded(runner, dataloader), **kwargs)

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        batch_sampler = self.dataloader.batch_sampler
        if not (isinstance(batch_sampler, SeededBatchSampler) and 0 <= done <= len(self.dataloader)):
            done = 0  # an epoch of another length
        elif done:
            batch_sampler.skip = done
        for index, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class SkippedFirst:
    """An iterator whose first items are None: those that the loop leaves out when it resumes.

    Args:
        items: The others.
        count: How many are left out.
        begin: Called after the last of them.
    """

    def __init__(self, items: Any, count: int, begin: Callable[[], None]) -> None:
        self.items, self.count, self.begin = items, count, begin

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        if self.count:
            self.count -= 1
            if not self.count:
                self.begin()
            return None
        return next(self.items)

    def skip_iter(self, count: int) -> None:
        """Leave out ``count`` items; the loop of onedl-mmengine asks for that."""
        for _ in range(count):
            next(self)


class ResumableIterLoop(IterBasedTrainLoop):
    """IterBasedTrainLoop without the batches up to the checkpoint, which that one loads when it resumes, and drops.

    The iteration to go on from is in the runner's message hub: the loader begins to load before the runner resumes.
    """

    dataloader_iterator: Any

    def __init__(self, runner: Runner, dataloader: Any, **kwargs: Any) -> None:
        done = runner.message_hub.runtime_info.get(RESUMED_ITERATION, 0)
        loader = seeded(runner, dataloader)
        passes = 0
        if done and loader is not dataloader:
            differs = runner._randomness_cfg.get('diff_rank_seed', False)
            loader = runner.build_dataloader(loader, seed=runner.seed, diff_rank_seed=differs)
            passes = _skip(loader, done)
        super().__init__(runner, loader, **kwargs)
        self.dataloader_iterator._epoch = passes
        if done and loader is not dataloader:
            self.dataloader_iterator = SkippedFirst(self.dataloader_iterator, done, self._set_epoch)

    def _set_epoch(self) -> None:
        """Set the epoch of the data again, which DistSamplerSeedHook sets to that of the loop, 0."""
        sampler = self.dataloader.batch_sampler.sampler
        if hasattr(sampler, 'epoch'):
            sampler.set_epoch(self.dataloader_iterator.items._epoch)


def _skip(loader: DataLoader, batches: int) -> int:
    """Let a loader begin behind so many batches; return how many passes through the data they were."""
    batch_sampler: Any = loader.batch_sampler
    if not hasattr(batch_sampler.sampler, 'epoch'):  # an endless sampler
        batch_sampler.skip = batches
        return 0
    passes, batch_sampler.skip = divmod(batches, len(batch_sampler))
    batch_sampler.sampler.set_epoch(passes)
    return passes
