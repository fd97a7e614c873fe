"""Train, test and draw Mask R-CNN and UperNet on the built-in digits: python tools/demo.py FOLDER [--quick]"""

from pathlib import Path

from _arguments import argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument('folder', type=Path, help='data, logs, checkpoints and pictures go here')
    parser.add_argument('--quick', action='store_true', help='the same path in two minutes, without learning much')
    args = parser.parse_args()

    from convnext_dense.run.demo import demo
    from convnext_dense.run.options import errors_as_sentences

    with errors_as_sentences():
        demo(args.folder, args.quick)


if __name__ == '__main__':
    main()
