"""Test a detector or segmentor: python tools/test.py CONFIG CHECKPOINT"""

from _arguments import add_config, add_overwrite, add_run, argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    add_run(parser)
    parser.add_argument('--tta', action='store_true', help='multi-scale and flip test (segmentors)')
    parser.add_argument(
        '--show-dir', metavar='FOLDER', help='draw predictions next to the ground truth into this folder'
    )
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='keep the predictions: a .pkl file for detectors, a folder of label maps for segmentors',
    )
    add_overwrite(parser, 'what is in the folder of --show-dir, and in that of --out or its file')
    args = parser.parse_args()

    from convnext_dense.run.options import errors_as_sentences
    from convnext_dense.run.train_test import test

    with errors_as_sentences():
        test(**vars(args))


if __name__ == '__main__':
    main()
