"""Detect or segment with an exported model: python -m convnext_dense.runtime MODEL IMAGE_OR_FOLDER... --out FOLDER"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from convnext_dense.errors import UserError
from convnext_dense.images import find_images, read_image
from convnext_dense.results import PredictionFolder, Result, write_predictions
from convnext_dense.runtime.model import Model
from convnext_dense.runtime.sessions import RUNTIMES


def predict(args: argparse.Namespace) -> None:
    """Write the predictions for all images that can be read."""
    files = find_images(args.images)
    folder = PredictionFolder(args.out, args.score_thr)
    folder.check_usable()
    model = Model(args.model, args.runtime, args.threads, args.bf16)

    def predict_file(path: Path) -> tuple[np.ndarray, Result]:
        image = read_image(path)
        return image, model.predict(image)

    write_predictions(files.items(), folder, predict_file)


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m convnext_dense.runtime', description=(__doc__ or '').split(':')[0])
    parser.add_argument('model', type=Path, help='.onnx or .xml file that tools/export.py wrote')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE_OR_FOLDER')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='a new folder for the predictions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='detections below are left out (default 0.3)')
    parser.add_argument('--runtime', choices=RUNTIMES, help='default: the first that is installed and reads the file')
    parser.add_argument('--threads', type=int, help='number of threads')
    parser.add_argument('--bf16', action='store_true', help='let OpenVINO compute in bfloat16')
    try:
        predict(parser.parse_args())
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
