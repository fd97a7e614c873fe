"""Name the files of a sample in the errors of its pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dataset import Compose
from mmengine.runner import Runner

from convnext_dense.data_check.splits import innermost_datasets

PATH_KEYS = ('img_path', 'seg_map_path')


class LoadingError(RuntimeError):
    """A sample could not be loaded or augmented; the message names its files."""


class NamePathsInErrors:
    """A pipeline whose errors name the files of the sample.

    Args:
        transforms: The steps of the pipeline, as in a config.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.pipeline = Compose(transforms)

    def __call__(self, sample: dict) -> dict | None:
        paths = [str(sample[key]) for key in PATH_KEYS if sample.get(key)]
        try:
            return self.pipeline(sample)
        except Exception as error:
            raise LoadingError(f'{" with ".join(paths)}: {type(error).__name__}: {error}') from error


def name_paths_in_errors(runner: Runner) -> None:
    """Let the errors of every data set that ``runner`` is going to build name the files of their samples.

    The pipelines in ``runner.cfg``, which is dumped, stay as they are.
    """
    for dataloader in (runner.train_dataloader, runner.val_dataloader, runner.test_dataloader):
        if not isinstance(dataloader, dict) or not isinstance(dataloader['dataset'], dict):
            continue
        for _, settings in innermost_datasets(dataloader['dataset']):
            if settings.get('pipeline'):
                settings['pipeline'] = [dict(type=NamePathsInErrors, transforms=settings['pipeline'])]
