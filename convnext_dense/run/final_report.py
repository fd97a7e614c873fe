"""The page about a training, written when the training has ended."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

REPORT_TOOL = Path(__file__).resolve().parents[1] / '.mim' / 'tools' / 'report.py'


def write_final_report(work_dir: Path) -> None:
    """Run ``tools/report.py`` on a training that has ended, and print one line about the page or why there is none.

    A process of its own writes the page: whatever happens to it, the training has ended well, and of several processes
    of a training only the first one is there. Without matplotlib, which draws the page, nothing is written.

    Args:
        work_dir: Of the training.
    """
    if importlib.util.find_spec('matplotlib') is None:
        return
    print(f'\nwriting a page about this training: {work_dir / "report.html"} (--no-report leaves it out)', flush=True)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the page tests a checkpoint on the same GPU
    try:
        done = subprocess.run([sys.executable, REPORT_TOOL, work_dir], capture_output=True, text=True, errors='replace')
    except KeyboardInterrupt:
        reason = 'interrupted'
    except OSError as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            print(f'written to {work_dir / "report.html"}', flush=True)
            return
        lines = done.stderr.strip().splitlines() or [f'it ended with status {done.returncode}']
        reason = lines[-1].removeprefix('error: ')
    print(f'warning: no page was written ({reason}); try again with tools/report.py {work_dir}', flush=True)
