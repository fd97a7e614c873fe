"""Command-line options that the tools share, and the config that they lead to."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from convnext_dense.errors import UserError
from convnext_dense.toolkits import install_errors

DATA_VARIABLE = 'CONVNEXT_DENSE_DATA'


def common_arguments(description: str) -> argparse.ArgumentParser:
    """The options that training and testing share, named as in mmdet's and mmseg's tools."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and metrics.json; default work_dirs/NAME_OF_THE_CONFIG'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change the config, as in model.backbone.init_cfg=None or key="[(a,b),(c,d)]"; '
        'data_root=FOLDER moves everything that the config reads below its data_root',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')
    return parser


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the program with one sentence and status 1 where the user can act; other errors keep their traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f'error: {error}')
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else 'not a checkpoint'
        sys.exit(
            f'error: the checkpoint cannot be read safely, it is damaged or holds more than tensors ({reason}): '
            'give another file, or save this one again as a plain state dict'
        )


def read_config(args: argparse.Namespace) -> Config:
    """The config that ``args`` of :func:`common_arguments` name, with their changes and a work folder.

    Raises:
        UserError: There is no such file, or a toolkit that it inherits from is not installed.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_file(args.config, 'config')
    with install_errors():
        cfg = Config.fromfile(args.config)
    options = dict(args.cfg_options)
    if 'data_root' in options and 'data_root' in cfg:
        old, new = (root.rstrip('/') for root in (cfg.data_root, options.pop('data_root')))
        # cfg._cfg_dict: a Config does not let its own dict be exchanged.
        cfg.merge_from_dict(_moved(cfg._cfg_dict.to_dict(), old, new))
    cfg.merge_from_dict(options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def _moved(value: Any, old: str, new: str) -> Any:
    """``value`` with every path below the folder ``old`` moved to ``new``."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, old, new) for item in value)
    if isinstance(value, str) and (value == old or value.startswith(old + '/')):
        return new + value[len(old) :]
    return value


def check_file(path: str, what: str) -> None:
    """Raise a UserError where there is no file ``path``."""
    if '://' not in path and not Path(path).is_file():
        raise UserError(f'there is no {what} file {path}: check the path (working folder: {Path.cwd()})')
