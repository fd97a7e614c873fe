"""Arguments that several tools share.

Nothing here imports torch or mmengine, which take seconds: each tool parses its arguments first and imports after.
"""

import argparse


def argument_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser described by the summary of a tool's docstring, without the example after the colon."""
    return argparse.ArgumentParser(description=docstring and docstring.splitlines()[0].split(':')[0])


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the config and the changes to it, named as in mmdet's and mmseg's tools."""
    parser.add_argument('config', help='config file, or PACKAGE::PATH for one of an installed package')
    add_cfg_options(parser)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='change the config, as in model.backbone.init_cfg=None or key="[(a,b),(c,d)]"; '
        'data_root=FOLDER moves everything that the config reads below its data_root',
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing share, named as in mmdet's and mmseg's tools."""
    add_work_dir(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')
    add_data_check(parser)


def add_work_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and metrics.json; default work_dirs/FOLDER/NAME of the config'
    )


def add_data_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--no-data-check',
        dest='data_check',
        action='store_false',
        help='do not check annotations, images and label maps before the first iteration',
    )
    parser.add_argument('--decode', action='store_true', help='decode every image in that check, not its header alone')


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the permission to replace what is there; ``what`` names it."""
    parser.add_argument('--overwrite', action='store_true', help=f'replace {what}, which is refused otherwise')
