"""Shared fixtures: small sample data, and the tools run in this process or as a user would."""

import runpy
import sys
from pathlib import Path

import pytest
from helpers import ROOT, without_page


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """A folder for CONVNEXT_DENSE_DATA with the digits under their own names."""
    from convnext_dense.sample_data import write_sample_data

    folder = tmp_path_factory.mktemp('data')
    write_sample_data(folder / 'digits', num_train=32, num_val=8)
    return folder


@pytest.fixture(scope='session')
def official_names(tmp_path_factory) -> Path:
    """A folder for CONVNEXT_DENSE_DATA that the official recipes read: two images in each split."""
    from convnext_dense.sample_data import write_sample_data

    return write_sample_data(tmp_path_factory.mktemp('named') / 'data', names='coco', num_train=2, num_val=2)


@pytest.fixture
def small_file(tmp_path) -> Path:
    """An exported file that finds one dog in the left half of every image of 16 x 16 pixels."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    from exported import write_small_file

    write_small_file(tmp_path / 'small.onnx')
    return tmp_path / 'small.onnx'


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run ``tools/NAME.py ARGS`` in this process; gives (exit message or None, printed text)."""

    def run(name: str, *args: object, data: Path | str = 'no_such_folder'):
        monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(data))
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', *map(str, without_page(name, args))])
        monkeypatch.syspath_prepend(str(ROOT / 'tools'))  # as for a script
        message = None
        try:
            runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
        except SystemExit as stop:
            message = stop.code
        return message, capsys.readouterr().out

    return run


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    """The lines that loading logs."""
    lines = []
    for module in ('models.loading', 'engine.load_hook', 'weights.sources'):
        monkeypatch.setattr(f'convnext_dense.{module}.print_log', lambda text, **_: lines.append(text))
    return lines


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that fork first: torch refuses a backward pass in a child of a process that has run one."""
    faults = ROOT / 'tests' / 'faults'
    items.sort(key=lambda item: faults not in item.path.parents)
