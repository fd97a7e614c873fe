"""What happens to the data of a run before its model is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from convnext_dense.data_check.check import check_data, follow_names
from convnext_dense.data_check.report import report
from convnext_dense.data_check.splits import innermost_datasets
from convnext_dense.errors import DiagnosableError
from convnext_dense.run.options import DATA_VARIABLE
from convnext_dense.toolkits import check_toolkit

# The number of this process among all, as its launcher sets it.
RANK_VARIABLES = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def prepare_data(cfg: Config, names: Sequence[str], launcher: str, *, check: bool, decode: bool) -> None:
    """Let labels follow names in ``cfg``, and check the data in the first process.

    Other processes wait for it where they join the process group.

    Args:
        cfg: The config of a run.
        names: The splits that it uses.
        launcher: How several processes were started; 'none' for one process.
        check: Check the data.
        decode: Decode every image in the check, instead of reading headers.

    Raises:
        UserError: The data cannot be used, or the toolkit of the config cannot be imported.
    """
    check_toolkit(cfg.get('default_scope') or 'mmengine')
    names = [name for name in names if cfg.get(f'{name}_dataloader')]
    follow_names(cfg, names)
    is_first = os.environ.get(RANK_VARIABLES.get(launcher, ''), '0') == '0'
    if check and is_first:
        report(check_data(cfg, names, decode=decode), cfg.work_dir)


def check_paths(cfg: Config, split: str) -> None:
    """Raise DiagnosableError unless every local file and folder of a split exists, before a model is built."""
    for _, dataset in innermost_datasets(cfg[f'{split}_dataloader']['dataset']):
        root = dataset.get('data_root') or ''
        sources = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
        for source in sources:
            if not source or '://' in f'{root}{source}':
                continue
            path = Path(root) / source
            if not path.exists():
                raise DiagnosableError(
                    f'the {split} data {path} do not exist: set {DATA_VARIABLE}=FOLDER, the folder that holds '
                    'coco/ and ade/, or --cfg-options data_root=FOLDER; the page "Get started" says how '
                    'data are laid out and how convnext_dense.sample_data makes a small set to try'
                )
