"""The losses of a model of each family of the zoos, with compiled operators and with ours: ``make test-mmcv``.

The first loss of every model, its weights initialised with the same seed, in one thread.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_dense.mmcv_ops import operators_in_use

pytestmark = pytest.mark.skipif(
    not operators_in_use().startswith('compiled'), reason='mmcv is not compiled in this environment'
)
SWEEP = Path(__file__).parents[2] / 'tools/dev/swap_sweep.py'
# mmcv has no CPU kernel for what these call: compiled, they do not run here.
WITHOUT_A_CPU_KERNEL = {'mmdet::carafe'}
# Compiled, deformable convolution refuses maps smaller than its kernel, so that these run with larger images alone.
LARGER_IMAGES = {'mmdet::ddod'}


def run(folder: Path, *options: str) -> tuple[str, dict[str, dict]]:
    """The operators in use, and the results of the sweep by family."""
    out = folder / 'results.json'
    sample = ('--no-swap', '--per-family', '1', '--initialise')
    subprocess.run([sys.executable, str(SWEEP), *sample, '--out', str(out), *options], check=True)
    results = json.loads(out.read_text())
    families = {model['configs'][0].split('/')[0]: model for model in results['models'].values()}
    return results['settings']['operators'], families


def differences(compiled: dict, ours: dict) -> list[str]:
    """Losses that are not within 1e-5 of each other, relative."""
    if ours['outcome'] != 'runs':
        return [ours['reason']]
    if compiled['size'] != ours['size'] or compiled['losses'].keys() != ours['losses'].keys():
        return [f'size {ours["size"]} and losses {list(ours["losses"])}']
    found = []
    for name, loss in compiled['losses'].items():
        if not math.isclose(loss, ours['losses'][name], rel_tol=1e-5):
            found.append(f'{name} {loss} and {ours["losses"][name]}')
    return found


def test_losses_are_the_same(tmp_path_factory):
    used, compiled = run(tmp_path_factory.mktemp('compiled'))
    assert used.startswith('compiled')
    used, ours = run(tmp_path_factory.mktemp('provided'), '--provided')
    assert used.startswith('provided')
    compared = [name for name, model in compiled.items() if model['outcome'] == 'runs']
    assert len(compared) > 100
    larger = {name for name in compared if compiled[name]['size'] > ours[name].get('size', math.inf)}
    assert larger == LARGER_IMAGES
    for name in larger:
        one = ('--only', f'{name}/', '--size', str(compiled[name]['size']))
        _, of_this_size = run(tmp_path_factory.mktemp('larger'), '--provided', *one)
        ours.update(of_this_size)
    assert {name: found for name in compared if (found := differences(compiled[name], ours[name]))} == {}
    only_ours = {name for name, model in ours.items() if model['outcome'] == 'runs'} - set(compared)
    assert only_ours == WITHOUT_A_CPU_KERNEL
