"""ConvNeXt against its peers: python tools/dev/benchmark.py SUBCOMMAND [options]

Every row has the same weights and the same images, and returns the four normalised stages as contiguous NCHW tensors.
Outputs (and in training a gradient) are compared first. Then the rows run in turn, round after round, so that what
disturbs the machine disturbs all of them; minima, medians and their ratios to ours are printed. A training step is
forward and backward. Peak memory is that of a separate process for each row.

mmpretrain: `pip install --no-deps mmpretrain==1.2.0 model-index mat4py einops 'importlib-metadata<9' ordered-set
markdown zipp`, into an environment for benchmarks only: beside transformers >= 5 it breaks the import of mmdet.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

SUBCOMMANDS = {
    'time': 'time and memory of backbones',
    'model': 'time and memory of the whole detector or segmentor of a config, with each backbone',
    'whole-model': 'time and memory of a whole detector or segmentor: the toolkit against its exported file',
    'scaling': 'time and memory against image size and batch',
    'profile': 'where the time of a step goes, instead of how long it takes',
    'optimizer': 'time of an AdamW step under layer decay',
    'protection': 'what the hooks that protect a training cost in a step',
    'rule': 'what it takes of a step to ask whether blocks may run fused',
    'loading': 'time and peak memory of loading weights',
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split(':')[0])
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='SUBCOMMAND')
    subcommands = {}
    for name, summary in SUBCOMMANDS.items():
        subcommands[name] = subparsers.add_parser(name, help=summary, description=summary)

    for name in ('model', 'whole-model', 'protection'):
        subcommands[name].add_argument('config', help='config file with a ConvNeXt as model.backbone')
    subcommands['scaling'].add_argument('--config', help='measure the whole model of this config')
    for name in ('model', 'whole-model', 'scaling', 'protection'):
        _add_cfg_options(subcommands[name])
    for name in ('time', 'scaling', 'profile', 'optimizer'):
        subcommands[name].add_argument('--arch', default='tiny', help='arch of ConvNeXt, default tiny')
    for name in ('time', 'scaling', 'profile'):
        subcommands[name].add_argument('--v2', action='store_true', help='blocks of ConvNeXt V2, with GRN')
    _add_rule(subcommands['rule'])
    subcommands['loading'].add_argument('--arch', default='xlarge', help='arch of ConvNeXt, default xlarge')
    for name in ('time', 'model', 'scaling', 'profile'):
        _add_choice_of_rows(subcommands[name])
    for name in ('time', 'scaling', 'profile'):
        subcommands[name].add_argument(
            '--drop-path', type=float, default=0.0, help='rate of stochastic depth in training'
        )
    for name in ('time', 'model', 'whole-model', 'scaling', 'optimizer', 'protection'):
        _add_rounds(subcommands[name])
    for name in ('time', 'model', 'whole-model', 'scaling'):
        _add_memory(subcommands[name])
    _add_whole_model(subcommands['whole-model'])
    for name in ('time', 'model', 'scaling', 'profile', 'optimizer'):
        _add_machine(subcommands[name])
        subcommands[name].add_argument('--markdown', type=Path, metavar='OUT', help='write the report')
    subcommands['scaling'].add_argument('--plot', type=Path, metavar='OUT', help='.png or .svg to draw')
    subcommands['loading'].add_argument('--repeats', type=int, default=7, help='processes for each figure')
    subcommands['loading'].add_argument('--measure', nargs=2, metavar=('WAY', 'FILE'), help=argparse.SUPPRESS)
    for subcommand in subcommands.values():
        subcommand.add_argument('--json', type=Path, metavar='OUT', help='write all figures')
    return parser


def _add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='change the config'
    )


def _add_choice_of_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--mode', choices=('inference', 'train'), default='inference')
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=('fp32', 'bf16', 'fp16'),
        default=['fp32'],
        help='bf16 and fp16: autocast; several are compared in one run',
    )
    parser.add_argument('--cast', action='store_true', help='inference: weights in the half type instead of autocast')
    parser.add_argument(
        '--layout',
        choices=('auto', 'contiguous', 'channels_last', 'both'),
        default='auto',
        help="the peers' memory; auto: the layouts that suit each (ours chooses by itself)",
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile of ours, official and timm as well')
    parser.add_argument(
        '--ours',
        nargs='+',
        default=[],
        metavar='NAME:KEY=VALUE,...',
        help='further rows of ours with other arguments, as in checkpoint:with_cp=True; keys in capitals are '
        'environment variables',
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these rows, or all rows of these peers')
    parser.add_argument('--batch', type=int, nargs='+', help='default 1, in training 2; several for scaling')
    parser.add_argument(
        '--size',
        nargs='+',
        metavar='HEIGHTxWIDTH',
        help='default 800x1344, in training 512x512; several for scaling',
    )


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--warmup', type=int, default=2, help='steps of each row before the first round')


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--no-memory', dest='memory', action='store_false', help='no peak memory, which takes a process per row'
    )
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)


def _add_whole_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--size', default='800x1344', metavar='HEIGHTxWIDTH', help='of the image, default 800x1344')
    parser.add_argument('--threads', type=int, help='CPU threads; default: as torch chooses')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these rows')
    parser.add_argument('--markdown', type=Path, metavar='OUT', help='write the report')
    parser.add_argument('--graph', type=Path, help=argparse.SUPPRESS)


def _add_rule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--arch', default='atto', help='arch of ConvNeXt, default atto')
    parser.add_argument('--v2', action='store_true', help='blocks of ConvNeXt V2, with GRN')
    parser.add_argument('--batch', type=int, default=2, help='default 2')
    parser.add_argument('--size', default='64x64', metavar='HEIGHTxWIDTH', help='of the image, default 64x64')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads, default 1')
    parser.add_argument('--rounds', type=int, default=100)
    parser.add_argument('--warmup', type=int, default=5, help='rounds before the first that counts')


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--threads', type=int, help='CPU threads; default: as torch chooses')
    parser.add_argument('--device', help='default cuda if there is a GPU, otherwise cpu')


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)

    from benchmarking.commands import run

    from convnext_dense.run.options import errors_as_sentences

    with errors_as_sentences():
        run(args, argv)


if __name__ == '__main__':
    main()
