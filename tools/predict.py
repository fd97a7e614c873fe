"""Detect or segment in images: python tools/predict.py CONFIG CHECKPOINT IMAGE_OR_FOLDER... --out FOLDER

Detectors write FOLDER/predictions.json, a COCO file with scores; segmentors write label maps, FOLDER/labels/NAME.png.
Both draw into FOLDER/pictures/.
"""

from pathlib import Path

from _arguments import add_config, argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE_OR_FOLDER')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='a new folder for the predictions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='detections below are left out (default 0.3)')
    args = parser.parse_args()

    from convnext_dense.run.options import errors_as_sentences
    from convnext_dense.run.predict import predict

    with errors_as_sentences():
        predict(**vars(args))


if __name__ == '__main__':
    main()
