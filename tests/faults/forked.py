"""Run the tools in forked children of a process that has imported both toolkits, which takes 16 s."""

import importlib
import os
import runpy
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT


@dataclass(frozen=True)
class Done:
    """A tool that has ended.

    Attributes:
        status: Its exit status.
        text: What it has printed on both streams.
    """

    status: int
    text: str

    @property
    def error(self) -> str:
        """The sentence that it ended with."""
        return self.text[self.text.rindex('error: ') :].strip()


def run_tool(log: Path, name: str, *args: object, data: Path) -> Done:
    """Run ``python tools/NAME.py ARGS`` in a forked child that writes into the file ``log``."""
    for toolkit in ('mmdet', 'mmseg'):
        importlib.import_module(f'{toolkit}.utils').register_all_modules(init_default_scope=False)
    importlib.import_module('convnext_dense.run.train_test')
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return Done(os.waitstatus_to_exitcode(status), log.read_text())
    status = 99
    try:
        with log.open('w') as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout = os.fdopen(1, 'w', closefd=False)
        sys.stderr = os.fdopen(2, 'w', closefd=False)
        os.environ['CONVNEXT_DENSE_DATA'] = str(data)
        sys.argv = [f'tools/{name}.py', *map(str, args)]
        sys.path.insert(0, str(ROOT / 'tools'))
        status = _status_of(str(ROOT / 'tools' / f'{name}.py'))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status_of(script: str) -> int:
    """Run a script and return the exit status that Python would end with."""
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
