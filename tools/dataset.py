"""Look into labelled images, convert and split them: python tools/dataset.py inspect DATA

Reads COCO, YOLO, Pascal VOC, LabelMe, a CSV table of boxes and folders of label maps.
"""

import argparse
from pathlib import Path

from _arguments import argument_parser

FORMATS = ('coco', 'yolo', 'voc', 'labelme', 'csv', 'labels')
TARGETS = ('coco', 'ade', 'yolo')


def main() -> None:
    parser = argument_parser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='inspect|convert|split')
    inspect = commands.add_parser('inspect', help='count classes, sizes and problems, and draw samples')
    _add_source(inspect)
    inspect.add_argument('--out', type=Path, metavar='PAGE.html', help='also write a page with samples drawn')
    convert = commands.add_parser('convert', help='write the layout that our configs read')
    _add_source(convert)
    _add_target(convert, 'of data that have no train and val')
    split = commands.add_parser('split', help='divide the images anew between train, val and test')
    _add_source(split)
    _add_target(split, 'of all images')
    args = parser.parse_args()

    from convnext_dense.run.dataset import convert_data, inspect
    from convnext_dense.run.options import errors_as_sentences

    options = vars(args)
    command = options.pop('command')
    classes = options.pop('classes')
    options['classes'] = [name.strip() for name in classes.split(',')] if classes else ()
    with errors_as_sentences():
        if command == 'inspect':
            inspect(**options)
        else:
            convert_data(**options, split_again=command == 'split')


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('data', type=Path, help='folder of the labels, or their file')
    parser.add_argument('--format', dest='file_format', choices=FORMATS, help='of the labels; default: found out')
    parser.add_argument('--images', type=Path, metavar='FOLDER', help='of the images, if not next to the labels')
    parser.add_argument('--classes', metavar='NAME,NAME', help='names of label maps, from index 0; default classes.txt')


def _add_target(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument('out', type=Path, help='a new folder')
    parser.add_argument('--to', choices=TARGETS, dest='target', help='default: coco for objects, ade for label maps')
    parser.add_argument('--copy', action='store_true', help='copy the images instead of linking to them')
    parser.add_argument('--val', type=float, default=0.2, metavar='SHARE', help=f'{what} (default 0.2)')
    parser.add_argument('--test', type=float, default=0.0, metavar='SHARE', help=f'{what} (default 0: no test split)')
    parser.add_argument('--seed', type=int, default=0, help='decides the split')
    parser.add_argument(
        '--group',
        metavar='PATTERN',
        help="keep images together: 'folder', or a regular expression whose first group in the image's name says which",
    )


if __name__ == '__main__':
    main()
