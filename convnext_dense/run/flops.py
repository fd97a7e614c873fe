"""The table of parameters and FLOPs that ``tools/get_flops.py`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from convnext_dense.archs import ARCHS
from convnext_dense.complexity import PARTS, Complexity, count, count_classifier
from convnext_dense.errors import UserError
from convnext_dense.roadmap_table import SIDE, text_lines
from convnext_dense.run.options import height_and_width, read_config

# The repository's folders configs/ and tools/ are below .mim, in an installed package too.
MIM = Path(__file__).resolve().parents[1] / '.mim'
CLASSIFIER_SIDES = (224, 384)  # pixels, of Table 1 of the paper
COLUMNS = ('params', *PARTS, 'FLOPs', *PARTS, 'attention')
LEGEND = (
    'Images are HEIGHTxWIDTH. Parameters in M (1e6), with auxiliary heads. FLOPs in G (1e9), without them: one\n'
    'multiply-add is one, detectors have 1,000 box and 100 mask RoIs a stage; attention is the part of the FLOPs that\n'
    'are products of one activation with another.'
)


def flops_table(
    configs: Sequence[str], whole_zoo: bool = False, shape: str | None = None, roadmap: bool = False
) -> Iterator[str]:
    """Yield the lines of the table, each as soon as it is counted.

    Args:
        configs: Config files of mmdet or mmseg; empty with ``whole_zoo`` or ``roadmap``.
        whole_zoo: Count every config of the model zoo that can be, and every arch as the ImageNet classifier.
        roadmap: Count the steps from ResNet to ConvNeXt, at the size that the paper counts them at.
        shape: Size of the images as HEIGHTxWIDTH; default :func:`convnext_dense.complexity.image_shape`.

    Raises:
        UserError: Nothing or too much was asked for, or a model cannot be counted.
    """
    if [bool(configs), whole_zoo, roadmap].count(True) != 1:
        raise UserError('give config files, --all or --roadmap')
    if roadmap:
        if shape:
            raise UserError(f'--roadmap counts at {SIDE}x{SIDE}, as the paper does: leave out --shape')
        yield from text_lines()
        return
    size = height_and_width(shape) if shape else None
    yield _line('', 'image', COLUMNS)
    for name, path in zoo_configs() if whole_zoo else zip(configs, configs):
        try:
            yield _line_of(name, count(read_config(path), size))
        except UserError as error:
            if not whole_zoo:
                raise
            yield f'{name:<46}not counted: {error}'
    if whole_zoo:
        for arch in ARCHS:
            for side in CLASSIFIER_SIDES:
                yield _line_of(f'ImageNet classifier ConvNeXt {arch}', count_classifier(arch, side))
    yield f'\n{LEGEND}'


def zoo_configs() -> Iterator[tuple[str, str]]:
    """Yield the name and the path of every config of the model zoo, in the order of the model index."""
    for metafile in sorted(MIM.glob('configs/*/metafile.yml')):
        for model in yaml.safe_load(metafile.read_text())['Models']:
            yield model['Config'].removeprefix('configs/'), str(MIM / model['Config'])


def _line_of(name: str, found: Complexity) -> str:
    params = (found.total_params, *found.params.values())
    flops = (found.total_flops, *found.flops.values(), found.attention)
    height, width = found.shape
    cells = [f'{value / 1e6:.2f}' for value in params] + [f'{value / 1e9:.2f}' for value in flops]
    return _line(name, f'{height}x{width}', cells)


def _line(name: str, size: str, cells: Iterable[str]) -> str:
    return f'{name:<46}{size:>10}' + ''.join(f'{cell:>10}' for cell in cells)
