"""The loading benchmark measures what it says, on a small arch."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_loading_benchmark(tmp_path):
    subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/dev/benchmark.py',
            'loading',
            '--arch',
            'atto',
            '--repeats',
            '1',
            '--json',
            tmp_path / 'figures.json',
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['file_mib'] > 14  # 3.7 million fp32 numbers
    assert set(figures['runs']) == {'bare', 'pretrained', 'load_state_dict'}
    for runs in figures['runs'].values():
        assert len(runs) == 1 and runs[0]['seconds'] > 0 and runs[0]['peak_mib'] > 100
    for way, ratio in figures['ratio'].items():
        assert ratio['seconds'] == round(figures['median'][way]['seconds'] / figures['median']['bare']['seconds'], 3)


def test_a_figure_of_zero_has_no_ratio(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/dev'))
    from benchmarking.loading import _summary

    def figures(above_model: float) -> list[dict[str, float]]:
        return [dict(seconds=2.0, peak_mib=200.0, above_model_mib=above_model)]

    summary = _summary('atto', 15, dict(bare=figures(0.0), pretrained=figures(2.0), load_state_dict=figures(0.0)))
    expected = dict(seconds=1.0, peak_mib=1.0, above_model_mib=None)
    assert summary['ratio'] == dict(pretrained=expected, load_state_dict=expected)
