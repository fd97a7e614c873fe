"""What a training has left in its work folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from convnext_dense.errors import UserError


@dataclass(frozen=True)
class FinishedRun:
    """A work folder.

    Attributes:
        path: The folder.
        config_file: The config that the runner wrote there.
        config: Its content.
        rows: What was logged, in order: dicts of numbers.
        checkpoint: The best checkpoint, or the last one.
        environment: What the log says about the machine.
    """

    path: Path
    config_file: Path
    config: Config
    rows: list[dict[str, Any]]
    checkpoint: Path
    environment: str

    @property
    def losses(self) -> list[dict[str, Any]]:
        """The rows of training."""
        return [row for row in self.rows if 'loss' in row]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of validation."""
        return [row for row in self.rows if 'loss' not in row and 'step' in row]


def read_run(path: Path) -> FinishedRun:
    """Read a work folder; of several runs in it, the later ones continue the first.

    Raises:
        UserError: It has no config, no log or no checkpoint.
    """
    configs = sorted(path.glob('*.py'))
    if len(configs) != 1:
        raise UserError(f'{path} holds {len(configs)} configs, wanted the one of a training: check the path')
    logs = sorted(path.glob('*/vis_data/scalars.json'))  # folders are named by time
    if not logs:
        raise UserError(f'{path} holds no log of a training (*/vis_data/scalars.json): check the path')
    rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    texts = sorted(path.glob('*/*.log'))
    found = re.search(r'System environment:(.*?)\n-{20,}', texts[-1].read_text(), re.S) if texts else None
    return FinishedRun(
        path=path,
        config_file=configs[0],
        config=Config.fromfile(configs[0]),
        rows=rows,
        checkpoint=_checkpoint(path),
        environment=found[1].strip('\n') if found else '',
    )


def _checkpoint(path: Path) -> Path:
    best = sorted(path.glob('best_*.pth'), key=lambda file: file.stat().st_mtime)
    if best:
        return best[-1]
    last = path / 'last_checkpoint'
    if last.is_file():
        # The folder may have been moved since.
        for file in (Path(last.read_text().strip()), path / Path(last.read_text().strip()).name):
            if file.is_file():
                return file
    raise UserError(f'{path} holds no checkpoint (best_*.pth or the one that last_checkpoint names): train first')
