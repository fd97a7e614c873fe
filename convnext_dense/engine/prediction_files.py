"""Files of a test, one for each image: pictures and label maps, in the sub-folders that the images are in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner

from convnext_dense.images import SUFFIXES, write_image
from convnext_dense.outputs import whole_files
from convnext_dense.results import LabelMap


class FilePerImageHook(Hook):
    """Write a file for each image of a test; a subclass says what is in it.

    Names and sub-folders are those of the images below the folder that all of them share. (The hooks and metrics of the
    toolkits take the name alone, so that of two images of one name one file is left.)

    Args:
        folder: Takes the files.
        roots: The folders that the images are in.
    """

    def __init__(self, folder: Path, roots: Sequence[Path]) -> None:
        self.folder = folder
        self.root = Path(os.path.commonpath([root.absolute() for root in roots])) if roots else None

    def path_of(self, image: str) -> Path:
        """Return the path of the file for an image."""
        path = Path(image).absolute()
        if self.root is not None and self.root in path.parents:
            return self.folder / path.relative_to(self.root)
        return self.folder / path.name

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        for sample in outputs or ():
            self.write(runner, sample, self.path_of(sample.img_path))

    def write(self, runner: Runner, sample: Any, path: Path) -> None:
        """Write the file of one image.

        Args:
            runner: Of the test.
            sample: The toolkit's data sample, with ground truth where the pipeline loads it, and predictions.
            path: With the suffix of the image.
        """
        raise NotImplementedError


class DrawHook(FilePerImageHook):
    """Draw predictions beside ground truth.

    Args:
        folder, roots: As of :class:`FilePerImageHook`.
        score_threshold: Detections below it are left out.
    """

    def __init__(self, folder: Path, roots: Sequence[Path], score_threshold: float) -> None:
        super().__init__(folder, roots)
        self.score_threshold = score_threshold

    def write(self, runner: Runner, sample: Any, path: Path) -> None:
        import mmcv

        image = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
        threshold = {} if 'pred_sem_seg' in sample else dict(pred_score_thr=self.score_threshold)
        if path.suffix.lower() not in SUFFIXES:
            path = path.with_name(f'{path.name}.png')
        with whole_files(path) as part:
            runner.visualizer.add_datasample(path.name, image, data_sample=sample, out_file=str(part), **threshold)


class KeepLabelMapsHook(FilePerImageHook):
    """Write label maps as mmseg's ``IoUMetric(output_dir=...)`` does, of more than 255 classes in 16 bits."""

    def write(self, runner: Runner, sample: Any, path: Path) -> None:
        labels = sample.pred_sem_seg.data[0].cpu().numpy()  # (1, H, W) -> (H, W)
        if sample.get('reduce_zero_label'):
            labels = labels + 1  # as in the files of the data set
        names = runner.visualizer.dataset_meta.get('classes') or ()
        largest = max(len(names), int(labels.max(initial=0)))
        write_image(path.with_suffix('.png'), LabelMap(labels, [''] * largest).as_png_array())
