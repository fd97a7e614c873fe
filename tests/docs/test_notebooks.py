"""The notebooks run from the first cell to the last, in an empty folder."""

import json
import os
import sys
from pathlib import Path

import pytest
from helpers import ROOT

# The metrics that a training has to end with, by notebook.
METRICS = {'detection.md': {'coco/bbox_mAP', 'coco/segm_mAP'}, 'segmentation.md': {'mIoU'}}


def test_every_notebook_is_run():
    assert {path.name for path in (ROOT / 'docs/notebooks').iterdir()} == {*METRICS}


@pytest.mark.docs
@pytest.mark.parametrize('name', sorted(METRICS))
def test_notebook(name, tmp_path, monkeypatch):
    import jupytext
    from nbclient import NotebookClient

    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    notebook = jupytext.read(ROOT / 'docs/notebooks' / name)
    NotebookClient(notebook, timeout=3600, resources={'metadata': {'path': str(tmp_path)}}).execute()
    assert METRICS[name] <= {*json.loads((tmp_path / 'run/metrics.json').read_text())}
    assert (tmp_path / 'run/report.html').stat().st_size > 10_000
    assert len(list((tmp_path / 'predicted/pictures').rglob('*.png'))) >= 10
    shown = [
        output for cell in notebook.cells for output in cell.get('outputs', ()) if 'image/png' in output.get('data', {})
    ]
    assert len(shown) == 1
