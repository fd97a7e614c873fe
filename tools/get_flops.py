"""Parameters and FLOPs by the published counting rule: python tools/get_flops.py CONFIG... (or --all, --roadmap)"""

from _arguments import argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument('config', nargs='*', help='config files of mmdet or mmseg')
    parser.add_argument(
        '--all',
        action='store_true',
        help='every config of the model zoo, and every arch as the ImageNet classifier at 224x224 and 384x384',
    )
    parser.add_argument(
        '--roadmap', action='store_true', help='the steps from ResNet to ConvNeXt, as ImageNet classifiers at 224x224'
    )
    parser.add_argument(
        '--shape',
        metavar='HEIGHTxWIDTH',
        help='size of the image, height first; default 800x1280 for detectors (published tables write it 1280x800), '
        'the scale of the test pipeline for segmentors',
    )
    args = parser.parse_args()

    from convnext_dense.run.flops import flops_table
    from convnext_dense.run.options import errors_as_sentences

    with errors_as_sentences():
        for line in flops_table(args.config, args.all, args.shape, args.roadmap):
            print(line, flush=True)


if __name__ == '__main__':
    main()
