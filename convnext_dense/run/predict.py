"""Write the predictions of a detector or segmentor for images: what ``tools/predict.py`` does.

Detectors write FOLDER/predictions.json, a complete COCO file with scores (category ids count from 1 in the order of the
model's classes, masks are RLE). Segmentors write FOLDER/labels/NAME.png with class indices from 0. Both draw into
FOLDER/pictures/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convnext_dense.images import find_images
from convnext_dense.results import PredictionFolder, write_predictions
from convnext_dense.run.predictor import Predictor
from convnext_dense.sample_data import progress


def predict(
    config: str,
    checkpoint: str,
    images: Sequence[Path],
    out: Path,
    *,
    cfg_options: Sequence[str] = (),
    score_thr: float = 0.3,
) -> None:
    """Write predictions and pictures of them.

    Args:
        config: A config file of mmdet or mmseg.
        checkpoint: A file with every tensor of the model.
        images: Images, and folders that are searched recursively.
        out: A new folder.
        cfg_options: Changes of the config, see :func:`convnext_dense.run.options.read_config`.
        score_thr: Detections below this score are left out.

    Raises:
        UserError: A file does not exist or cannot be used, ``out`` is not empty, or images could not be predicted. In
            the last case the predictions of all others have been written.
    """
    files = find_images(images)
    folder = PredictionFolder(out, score_thr)
    folder.check_usable()
    predictor = Predictor(config, checkpoint, cfg_options=cfg_options)
    write_predictions(progress(list(files.items())), folder, predictor.with_picture)
