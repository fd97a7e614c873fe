"""``python -m convnext_dense.run_script`` runs a script as ``python`` does."""

import subprocess
import sys

import pytest

from convnext_dense import run_script

SCRIPT = """
import sys
print(__name__, __file__, sys.argv, sys.path[0], sys.modules['__main__'].__dict__ is globals())
import beside
from mmcv.ops import nms
print(nms.__module__)
sys.exit(3)
"""


def test_runs_a_script_that_imports_mmcv_ops_first(tmp_path):
    pytest.importorskip('mmcv')
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'beside.py').write_text("print('beside')")
    (folder / 'script.py').write_text(SCRIPT)
    command = [sys.executable, '-m', 'convnext_dense.run_script', 'scripts/script.py', '--flag', 'value']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    path = str(folder / 'script.py')
    assert done.stdout.split('\n') == [
        f"__main__ {path} ['{path}', '--flag', 'value'] {folder} True",
        'beside',
        'mmcv.ops.nms',
        '',
    ], done.stderr
    assert done.returncode == 3


@pytest.mark.parametrize(
    'args, line',
    [
        ((), 'usage: python -m convnext_dense.run_script PATH [ARGS]'),
        (('no.py',), 'error: no.py is no script'),
    ],
)
def test_says_what_is_missing(monkeypatch, args, line):
    monkeypatch.setattr(sys, 'argv', ['run_script.py', *args])
    with pytest.raises(SystemExit) as stop:
        run_script.main()
    assert stop.value.code == line
