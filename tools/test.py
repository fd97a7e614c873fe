"""Test a detector or segmentor: python tools/test.py CONFIG CHECKPOINT"""

from convnext_dense.run.options import common_arguments, errors_as_sentences
from convnext_dense.run.train_test import test


def main() -> None:
    parser = common_arguments(__doc__.split(':')[0])
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--tta', action='store_true', help='multi-scale and flip test (segmentors)')
    parser.add_argument('--show-dir', metavar='FOLDER', help='draw predictions beside ground truth into this folder')
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='keep the predictions: a .pkl file for detectors, a folder of label maps for segmentors',
    )
    with errors_as_sentences():
        test(parser.parse_args())


if __name__ == '__main__':
    main()
