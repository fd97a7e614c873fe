"""Parameters and FLOPs by the published counting rule: python tools/get_flops.py CONFIG… (or --all)"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from mmengine.config import Config

from convnext_dense import ARCHS
from convnext_dense.complexity import PARTS, Complexity, count, count_classifier
from convnext_dense.errors import UserError
from convnext_dense.run.options import check_file, errors_as_sentences

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
COLUMNS = ('params', *PARTS, 'FLOPs', *PARTS, 'attention')


def shape_of(text: str) -> tuple[int, int]:
    """'1280x800' (width, height) -> (800, 1280)."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is no size: write WIDTHxHEIGHT, such as 1280x800')
    return int(match[2]), int(match[1])


def row(name: str, size: str, cells: Iterable[str]) -> str:
    return f'{name:<46}{size:>10}' + ''.join(f'{cell:>10}' for cell in cells)


def row_of(name: str, found: Complexity) -> str:
    height, width = found.shape
    params = (found.total_params, *found.params.values())
    flops = (found.total_flops, *found.flops.values(), found.attention)
    cells = [f'{value / 1e6:.2f}' for value in params] + [f'{value / 1e9:.2f}' for value in flops]
    return row(name, f'{width}x{height}', cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('config', nargs='*', help='config files of mmdet or mmseg')
    parser.add_argument(
        '--all',
        action='store_true',
        help='every config of the model zoo, and every arch as the ImageNet classifier at 224x224 and 384x384',
    )
    parser.add_argument(
        '--shape',
        type=shape_of,
        metavar='WIDTHxHEIGHT',
        help='size of the image; default 1280x800 for detectors, the scale of the test pipeline for segmentors',
    )
    args = parser.parse_args()
    with errors_as_sentences():
        if bool(args.config) == args.all:
            raise UserError('give config files or --all')
        names = {config: config for config in args.config}
        if args.all:
            names = {
                model['Config'].removeprefix('configs/'): CONFIGS.parent / model['Config']
                for path in sorted(CONFIGS.glob('*/metafile.yml'))
                for model in yaml.safe_load(path.read_text())['Models']
            }
        print(row('', 'image', COLUMNS))
        for name, path in names.items():
            check_file(str(path), 'config')
            print(row_of(name, count(Config.fromfile(path), args.shape)), flush=True)
        for arch in ARCHS if args.all else ():
            for side in (224, 384):
                print(row_of(f'ImageNet classifier ConvNeXt {arch}', count_classifier(arch, side)), flush=True)
        print(
            '\nParameters in M (1e6), with auxiliary heads. FLOPs in G (1e9), without them: one multiply-add is one, '
            'detectors have 1,000 box\nand 100 mask RoIs a stage; attention is what the FLOPs hold of products of '
            'one activation with another.'
        )


if __name__ == '__main__':
    main()
