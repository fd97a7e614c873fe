"""Write a page about a training: python tools/report.py WORK_DIR

Result, average precision or IoU by class, confusion, the best and worst images, curves, settings and environment, in
one HTML file.
"""

from pathlib import Path

from _arguments import argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument('work_dir', type=Path, help='work folder of a training')
    parser.add_argument('--compare', type=Path, metavar='WORK_DIR2', help='compare with another training')
    parser.add_argument('--out', type=Path, metavar='PAGE.html', help='default WORK_DIR/report.html')
    args = parser.parse_args()

    from convnext_dense.run.options import errors_as_sentences
    from convnext_dense.run.report.page import write_report

    with errors_as_sentences():
        print(f'\nwritten to {write_report(**vars(args))}')


if __name__ == '__main__':
    main()
