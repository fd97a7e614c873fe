"""The page at the end of a training: written by a process of its own, whose end the training survives."""

import importlib.util
import json
import re

import pytest
from helpers import ROOT

from convnext_dense.run import final_report
from convnext_dense.run.final_report import write_final_report
from convnext_dense.run.train_test import train

DIGITS = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.indices=8')
# Scripts in the place of tools/report.py, and the reason that is printed for each.
FAILURES = {
    'a sentence': ("import sys; sys.exit('error: the disk is full')", 'the disk is full'),
    'a traceback': ("raise KeyError('test_dataloader')", "KeyError: 'test_dataloader'"),
    'a kill': ('import os; os.kill(os.getpid(), 9)', 'it ended with status -9'),
    'bytes that are no text': ("import sys; sys.stderr.buffer.write(b'\\xff\\n'); sys.exit(3)", '\ufffd'),
    'a syntax error': ('def', 'SyntaxError: invalid syntax'),
}


@pytest.fixture
def report_tool(tmp_path, monkeypatch):
    """Put a script in the place of ``tools/report.py``."""
    pytest.importorskip('matplotlib')

    def replace(text: str) -> None:
        (tmp_path / 'report.py').write_text(text)
        monkeypatch.setattr(final_report, 'REPORT_TOOL', tmp_path / 'report.py')

    return replace


def test_page_is_written(report_tool, tmp_path, capsys):
    report_tool("import pathlib, sys; pathlib.Path(sys.argv[1], 'report.html').write_text('page'); print('noise')")
    write_final_report(tmp_path)
    assert (tmp_path / 'report.html').read_text() == 'page'
    announced, written = capsys.readouterr().out.strip().splitlines()
    assert announced.startswith(f'writing a page about this training: {tmp_path}/report.html (--no-report leaves ')
    assert written == f'written to {tmp_path}/report.html'


@pytest.mark.parametrize('failure', FAILURES)
def test_page_that_fails_is_one_line(failure, report_tool, tmp_path, capsys):
    text, reason = FAILURES[failure]
    report_tool(text)
    write_final_report(tmp_path)
    _, line = capsys.readouterr().out.strip().splitlines()
    assert line == f'warning: no page was written ({reason}); try again with tools/report.py {tmp_path}'


@pytest.mark.parametrize(
    'error, reason', [(KeyboardInterrupt(), 'interrupted'), (OSError(11, 'no process'), '[Errno 11] no process')]
)
def test_process_that_cannot_be_waited_for(error, reason, tmp_path, monkeypatch, capsys):
    pytest.importorskip('matplotlib')

    def raise_error(*_, **__):
        raise error

    monkeypatch.setattr(final_report.subprocess, 'run', raise_error)
    write_final_report(tmp_path)
    assert f'warning: no page was written ({reason}); ' in capsys.readouterr().out


def test_nothing_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(final_report.subprocess, 'run', lambda *_, **__: pytest.fail('a process was started'))
    write_final_report(tmp_path)
    assert capsys.readouterr().out == ''


@pytest.mark.slow
def test_training_ends_with_a_page(digits, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmdet')
    pytest.importorskip('matplotlib')
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(digits))
    config = str(ROOT / 'configs/mask_rcnn/convnext_digits.py')
    metrics = train(config, work_dir=str(tmp_path), cfg_options=DIGITS, report=True)
    page = (tmp_path / 'report.html').read_text()
    assert f'written to {tmp_path}/report.html' in capsys.readouterr().out
    assert {'result', 'precision-recall', 'curves', 'config'} <= set(re.findall(r'<h2 id="([\w-]+)"', page))
    assert metrics == json.loads((tmp_path / 'metrics.json').read_text()), 'those of the training'
