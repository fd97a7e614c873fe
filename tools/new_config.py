"""Write a config for your own data: python tools/new_config.py DATA --recipe mask_rcnn --arch tiny

DATA is what `convnext-dense dataset convert` wrote. The config inherits from one of this package, or from a config of
mmdet or mmseg with ConvNeXt in it.
"""

from pathlib import Path

from _arguments import argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument('data', type=Path, help='folder in the layout of COCO or ADE20K')
    parser.add_argument(
        '--recipe',
        default='mask_rcnn',
        help='mask_rcnn, cascade_mask_rcnn, faster_rcnn, upernet, or a config of mmdet or mmseg: a path, or mmdet::…',
    )
    parser.add_argument('--arch', help='of the backbone, such as base; default tiny')
    parser.add_argument(
        '--weights',
        help='for the backbone: path, URL, hf-hub:org/name, timm:name, the short name of an official file, or none; '
        'default: those of the recipe',
    )
    parser.add_argument(
        '--batch-size', type=int, default=2, metavar='N', help='images per iteration, over all GPUs (default 2)'
    )
    parser.add_argument(
        '--epochs', type=int, metavar='N', help='passes over the training images; default: by their number'
    )
    parser.add_argument('-o', '--out', type=Path, metavar='OUT.py', help='config to write; default RECIPE_ARCH.py')
    parser.add_argument('--dry-run', action='store_true', help='print the config instead of writing it')
    args = parser.parse_args()

    from convnext_dense.run.new_config.write import new_config
    from convnext_dense.run.options import errors_as_sentences

    with errors_as_sentences():
        new_config(**vars(args))


if __name__ == '__main__':
    main()
