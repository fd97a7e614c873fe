"""Random numbers that go on after a resume as if the training had never stopped.

Two streams are told apart. The numbers of the training step (drop path, dropout, samplers of RoIs) come from the
generators of each process, whose states are in the checkpoints. The numbers of the data (augmentation) are seeded anew
for each sample, by the seed of the run, the epoch and the place of the sample in it: they do not depend on how many
workers load the data, nor on where a run was stopped.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_distributed
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, Sampler, get_worker_info

KEY = 'random_states'  # in a checkpoint: the states of every process


def generator_states() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, torch and CUDA, in types that safe loading reads."""
    numpy_state: Any = np.random.get_state()
    name, keys, position, has_gauss, gauss = numpy_state
    states = dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_generator_states(states: dict[str, Any]) -> None:
    """Set the states that :func:`generator_states` has returned."""
    version, internal, gauss = states['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


class RandomStateHook(Hook):
    """Let every iteration begin with the generators as the one before has left them, in this run or a resumed one.

    What lies between (validation, a new epoch's loader, writing checkpoints) draws from the generators too, and a
    resumed run does not repeat it.
    """

    priority = 'VERY_HIGH'  # after an iteration, the first to look

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None  # of this process, after its last iteration

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        everywhere = checkpoint.get(KEY)
        if not isinstance(everywhere, list) or len(everywhere) != get_world_size():
            found = len(everywhere) if isinstance(everywhere, list) else 'no'
            print_log(
                f'the checkpoint holds the random numbers of {found} processes, this run has '
                f'{get_world_size()}: it goes on with other ones',
                logger='current',
            )
            return
        states = everywhere[get_rank()]
        before = generator_states()
        try:
            set_generator_states(states)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            print_log(
                f'the random numbers in the checkpoint cannot be used ({error}): the run continues with new ones',
                logger='current',
            )
            return
        finally:
            set_generator_states(before)
        self._states = states

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._states is not None:
            set_generator_states(self._states)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._states = generator_states()

    def gather(self) -> list[dict[str, Any] | None]:
        """Return the states of every process; all processes have to call it."""
        return all_gather_object(self._states) if is_distributed() else [self._states]


class SampleIndex(int):
    """The index of a sample, with the seed of its random numbers."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SampleIndex:
        new = super().__new__(cls, index)
        new.seed = seed
        return new

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.seed)


class SeededBatchSampler(Sampler):
    """Batches of another batch sampler, whose indices carry seeds, with a number of batches left out at first.

    Args:
        sampler, batch_size: As mmengine gives them to a batch sampler.
        seed: Of the run.
        batch_sampler: Config of the batch sampler that makes the batches; default torch's.
        drop_last: For torch's batch sampler.
        skip: How many batches the first pass leaves out: nothing of them is loaded.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        seed: int,
        batch_sampler: dict | None = None,
        drop_last: bool = False,
        skip: int = 0,
    ) -> None:
        self.sampler, self.batch_size, self.seed, self.skip = sampler, batch_size, seed, skip
        self.drop_last = drop_last
        if batch_sampler is None:
            self.batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batch_sampler = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
            )

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        epoch = getattr(self.sampler, 'epoch', 0)
        for number, batch in enumerate(self.batch_sampler):
            if number < skip:
                continue
            seeds = np.random.SeedSequence([self.seed, get_rank(), epoch, number]).generate_state(len(batch))
            yield [SampleIndex(index, int(seed)) for index, seed in zip(batch, seeds)]

    def __len__(self) -> int:
        return len(self.batch_sampler)


class SeededDataset:
    """A data set whose random numbers are those of the seed in the index; all else is the data set inside.

    Data sets that keep earlier samples for later ones (``CachedMosaic``) still depend on what was loaded before.

    Args:
        dataset: Config of the data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__['dataset'] = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SampleIndex):
            return self.dataset[index]
        if get_worker_info() is not None:
            _seed(index.seed)
            return self.dataset[int(index)]
        states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
        _seed(index.seed)
        try:
            return self.dataset[int(index)]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)  # hooks exchange the pipeline


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)  # torch.manual_seed sets the generators of GPUs too
