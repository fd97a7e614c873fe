"""A tool parses its arguments before it imports what takes seconds."""

import ast
import re
import runpy
import subprocess
import sys

import pytest
from helpers import ROOT

from convnext_dense.convert import TARGETS

TOOLS = sorted(path.name for path in (ROOT / 'tools').glob('[!_]*.py'))
BENCHMARKS = ('time', 'model', 'whole-model', 'scaling', 'profile', 'optimizer', 'loading')
HEAVY = ('torch', 'mmengine', 'mmcv', 'convnext_dense', 'numpy', 'matplotlib', 'cv2')
SCRIPT = """
import runpy, sys
path, *options = sys.argv[1:]
sys.argv = [path, *options, '--help']
sys.path[0] = path.rpartition('/')[0]
try:
    runpy.run_path(path, run_name='__main__')
except SystemExit as stop:
    status = stop.code
print(status, sorted(name for name in sys.modules if '.' not in name))
"""


def help_of(script: str, *options: str) -> tuple[str, int, list[str]]:
    """What ``--help`` prints, its exit status, and the modules that were imported for it."""
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, str(ROOT / script), *options], capture_output=True, text=True, check=True
    )
    text, _, last = done.stdout.strip().rpartition('\n')
    status, _, modules = last.partition(' ')
    return text, int(status), ast.literal_eval(modules)


def test_all_tools_are_found():
    assert TOOLS == [
        'convert_checkpoint.py',
        'dataset.py',
        'demo.py',
        'doctor.py',
        'export.py',
        'get_flops.py',
        'install_mmcv.py',
        'new_config.py',
        'predict.py',
        'report.py',
        'swap_backbone.py',
        'test.py',
        'train.py',
    ]


@pytest.mark.parametrize('name', TOOLS)
def test_help_imports_nothing_heavy(name):
    text, status, modules = help_of(f'tools/{name}')
    assert status == 0 and text.startswith(f'usage: {name}')
    assert 'argparse' in modules and not set(HEAVY) & set(modules)


@pytest.mark.parametrize('options', [(), ('dataset',), ('dataset', 'convert'), ('train',), ('doctor',)], ids=' '.join)
def test_help_of_the_command(options):
    text, status, modules = help_of('tools/convnext-dense', *options)
    assert status == 0 and text.startswith(f'usage: {" ".join(("convnext-dense", *options))}')
    assert not set(HEAVY) & set(modules)


def test_commands_are_tools():
    commands = runpy.run_path(str(ROOT / 'convnext_dense/cli.py'))['COMMANDS']
    assert {file for file, _ in commands.values()} == {*TOOLS} - {'install_mmcv.py'}


@pytest.mark.parametrize('options', [(), *((name,) for name in BENCHMARKS)], ids=' '.join)
def test_help_of_the_benchmark(options):
    text, status, modules = help_of('tools/dev/benchmark.py', *options)
    assert status == 0 and text.startswith(f'usage: {" ".join(("benchmark.py", *options))}')
    assert not set(HEAVY) & set(modules)


def test_help_names_every_format():
    text, _, _ = help_of('tools/convert_checkpoint.py')
    formats = re.search(r'--to \{([^}]*)\}', text)[1]
    assert (
        formats.split(',')
        == ['ours', 'official', 'timm', 'timm_conv', 'torchvision', 'hf', 'mmpretrain']
        == list(TARGETS)
    )
