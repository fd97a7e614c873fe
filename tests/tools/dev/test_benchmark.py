"""tools/dev/benchmark.py: equal peers, and figures that follow from the run. No time decides a test."""

import json
import os
import shlex
import statistics
import sys
from functools import partial

import pytest
import torch
from helpers import ROOT
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import ConvNeXt

pytest.importorskip('mmdet', reason='needs mmdet')
TINY = ('--arch', 'atto', '--device', 'cpu', '--warmup', '1')
PROFILE = ('--arch', 'atto', '--device', 'cpu')
MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'


@pytest.fixture
def benchmark(monkeypatch, capsys, tmp_path):
    """Run the tool in this process; gives (exit message or None, printed text, JSON or None)."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'dev'))
    import benchmark as module
    from benchmarking import timing

    monkeypatch.setattr(timing, 'rates', partial(timing.rates, tokens=64, channels=32))

    def run(*options):
        path = tmp_path / 'figures.json'
        message = None
        try:
            module.main([*map(str, options), '--json', str(path)])
        except SystemExit as stop:
            message = stop.code
        return message, capsys.readouterr().out, json.loads(path.read_text()) if path.exists() else None

    return run


def names(figures):
    return [f'{row["name"]} {row["dtype"]}' for row in figures['rows']]


def test_inference(benchmark, monkeypatch, tmp_path):
    for library in ('transformers', 'openvino', 'mmpretrain'):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr('benchmarking.peers.import_mmpretrain', lambda: __import__('mmpretrain'))
    message, text, figures = benchmark(
        'time', *TINY, '--size', '33x64', '--rounds', 3, '--no-memory', '--markdown', tmp_path / 'table.md'
    )
    assert message is None
    assert {'transformers', 'openvino', 'mmpretrain'} <= set(figures['missing'])
    assert 'missing: mmpretrain (import of mmpretrain halted' in text
    expected = [
        'ours',
        'ours eager',
        'ours unprepared',
        'official',
        'timm',
        'timm channels_last',
        'torchvision',
        'torchvision channels_last',
    ]
    assert [name for name in names(figures) if 'onnx' not in name] == [f'{name} fp32' for name in expected]
    assert ('onnxruntime fp32' in names(figures)) == ('onnxruntime' not in figures['missing'])
    ours = figures['rows'][0]
    for row in figures['rows']:
        assert row['differences']['outputs'] <= 1e-5, row['name']
        times = row['seconds']
        assert len(times) == 3 and row['min'] == min(times) > 0 and row['median'] == statistics.median(times)
        assert row['ratio_min_fp32'] == row['min'] / ours['min']
        assert row['ratio_median_fp32'] == row['median'] / ours['median']
        assert row['images_per_second'] == 1 / row['min']
    table = (tmp_path / 'table.md').read_text()
    assert table in text
    for row in figures['rows']:
        assert (
            f'| {row["name"]} | fp32 | {row["min"] * 1000:.1f} | {row["median"] * 1000:.1f} | '
            f'{row["spread"]:.0%} | {row["images_per_second"]:.2f} | '
            f'{row["ratio_min_fp32"]:.2f} ({row["ratio_median_fp32"]:.2f}) |'
        ) in table
    assert figures['machine']['versions']['torch'] == torch.__version__.split('+')[0]
    assert {'linear fp32', 'linear bf16', 'weight gradient fp32', 'copy GB/s'} <= set(figures['rates'])


def test_training_counts_what_is_saved(benchmark):
    """The official formulation keeps 48 bytes a token and channel in fp32: x, the depthwise output, the norm's output,
    16 and 16 around GELU, the second Linear's output; and the norm's mean and deviation. A checkpoint keeps x."""
    message, _, figures = benchmark(
        'time',
        *TINY,
        '--mode',
        'train',
        '--size',
        '32x64',
        '--rounds',
        1,
        '--no-memory',
        '--dtype',
        'fp32',
        'bf16',
        '--ours',
        'with_cp:with_cp=True',
        '--only',
        'ours eager',
        'ours with_cp',
        'official',
        'torchvision channels_last',
        'ours',
        'ours lean',
    )
    assert message is None
    rows = dict(zip(names(figures), figures['rows']))
    depths, channels = (2, 2, 6, 2), (40, 80, 160, 320)
    pixels = [(32 * 64) // (4 * 2**i) ** 2 for i in range(4)]
    statistics_of_norms = sum(8 * d * p for d, p in zip(depths, pixels)) / sum(
        d * p * c for d, p, c in zip(depths, pixels, channels)
    )
    for name in ('ours eager', 'official', 'torchvision channels_last'):
        assert rows[f'{name} fp32']['bytes_per_token_channel'] == round(48 + statistics_of_norms, 2), name
        assert rows[f'{name} bf16']['bytes_per_token_channel'] == pytest.approx(24, abs=0.2), name
    assert rows['ours with_cp fp32']['bytes_per_token_channel'] == 4
    assert rows['ours bf16']['bytes_per_token_channel'] <= 12.5
    assert rows['ours lean bf16']['bytes_per_token_channel'] <= 4.5
    for name, row in rows.items():
        assert row['differences']['gradient'] <= (0.1 if 'bf16' in name else 1e-5), name
        assert row['ratio_min_bf16'] == row['min'] / rows['ours bf16']['min']
    saved = {name: row['saved_mib'] for name, row in rows.items()}
    assert saved['ours with_cp bf16'] < saved['ours bf16'] < saved['ours eager bf16'] < saved['ours eager fp32']
    with FlopCounterMode(display=False) as counter:  # forward only: it takes the depthwise gradients for dense ones
        ConvNeXt('atto')(torch.zeros(2, 3, 32, 64))
    stem = 2 * 2 * 8 * 16 * 40 * 48  # the image needs no gradient
    assert figures['gflop'] == (3 * counter.get_total_flops() - stem) / 1e9


@pytest.mark.parametrize('mode', ['inference', 'train'])
def test_v2(benchmark, mode):
    """Every library that has ConvNeXt V2 equals the official formulation; torchvision has none."""
    rows = ['ours', 'ours eager', 'official', 'timm', 'torchvision', 'transformers']
    message, _, figures = benchmark(
        'time', *TINY, '--v2', '--mode', mode, '--size', '32x64', '--rounds', 1, '--no-memory', '--only', *rows
    )
    assert message is None and figures['missing'] == {'torchvision': 'torchvision has no ConvNeXt V2'}
    assert {row['peer'] for row in figures['rows']} == {'ours', 'official', 'timm', 'transformers'}
    for row in figures['rows']:
        assert max(row['differences'].values()) <= 1e-5, row['name']


def test_inference_rows_are_prepared(benchmark):
    from benchmarking.options import Options
    from benchmarking.rows import choose_rows
    from benchmarking.subjects import Subject, Task

    task = Task(Options(arch='atto', only=['ours', 'ours unprepared']), 1, (32, 32))
    subjects = [Subject(row, task) for row in choose_rows(task.options)]
    prepared = [subject.model.stages[0][0]._prepared is not None for subject in subjects]
    assert prepared == [True, False]


def test_rows_of_ours_see_their_environment(benchmark, monkeypatch):
    seen = []
    forward = ConvNeXt.forward
    monkeypatch.setattr(
        ConvNeXt,
        'forward',
        lambda self, x: (
            seen.append((os.environ.get('CONVNEXT_DENSE_KERNELS'), os.environ.get('SOME'), self.stages[0][0].memory)),
            forward(self, x),
        )[1],
    )
    monkeypatch.setenv('CONVNEXT_DENSE_KERNELS', 'mine')
    message, _, figures = benchmark(
        'time',
        *TINY,
        '--size',
        '32x32',
        '--rounds',
        1,
        '--no-memory',
        '--ours',
        'other:SOME=thing,with_cp=True',
        '--only',
        'ours',
        'ours eager',
        'ours other',
    )
    assert message is None and names(figures) == ['ours fp32', 'ours eager fp32', 'ours other fp32']
    assert set(seen) == {(None, None, None), ('eager', None, None), (None, 'thing', 'checkpoint')}
    assert os.environ['CONVNEXT_DENSE_KERNELS'] == 'mine'


def test_unequal_peer_is_refused(benchmark, monkeypatch):
    from benchmarking.peers import PEERS

    build, layouts = PEERS['timm']

    def wrong(*args):
        model = build(*args)
        model.norms[3].weight.data *= 1.001
        return model

    monkeypatch.setitem(PEERS, 'timm', (wrong, layouts))
    message, _, figures = benchmark(
        'time', *TINY, '--size', '32x32', '--rounds', 1, '--no-memory', '--only', 'ours', 'timm'
    )
    assert message.startswith('error: the outputs of timm fp32 differ from the official formulation by ')
    assert figures is None


@pytest.mark.parametrize('config, mode, size', [(MASK_RCNN, 'inference', '64x96'), (UPERNET, 'train', '64x64')])
def test_whole_models(config, mode, size, benchmark):
    message, text, figures = benchmark(
        'model',
        config,
        '--mode',
        mode,
        '--size',
        size,
        '--batch',
        2,
        '--rounds',
        1,
        '--warmup',
        1,
        '--device',
        'cpu',
        '--no-memory',
        '--only',
        'ours',
        'official',
    )
    assert message is None
    assert [row['images_per_second'] for row in figures['rows']] == [2 / row['min'] for row in figures['rows']]
    if mode == 'inference':
        assert figures['detections_per_image'] == 10  # max_per_img: as many as a trained detector can find
        assert '- 10 detections an image, of random weights' in text


@pytest.mark.slow
def test_whole_model_as_a_file(benchmark, tmp_path):
    pytest.importorskip('onnxscript', reason="pip install 'convnext-dense[export]'")
    pytest.importorskip('onnxruntime')
    message, text, figures = benchmark(
        'whole-model', UPERNET, '--size', '64x96', '--rounds', 2, '--warmup', 1, '--no-memory', '--only', 'toolkit',
        'ONNX Runtime', '--markdown', tmp_path / 'table.md',
    )  # fmt: skip
    assert message is None
    toolkit, exported = figures['rows']
    assert (toolkit['name'], exported['name']) == ('toolkit', 'ONNX Runtime')
    assert toolkit['found'] == exported['found'] and len(exported['seconds']) == 2
    table = (tmp_path / 'table.md').read_text()
    assert table in text and f'| ONNX Runtime | {exported["min"]:.3f} ' in table


def test_memory_is_that_of_a_process_of_its_own(benchmark):
    """A step keeps the largest pair of tensors at least: the first Linear's output and GELU's."""
    ballast = torch.zeros(2**28)  # 1 GiB here
    message, _, figures = benchmark('time', *TINY, '--size', '320x320', '--rounds', 1, '--only', 'ours')
    (row,) = figures['rows']
    pair = 2 * 80 * 80 * 160 * 4 / 2**20
    assert message is None and pair <= row['step_mib'] <= 8 * pair
    assert row['step_mib'] < row['peak_mib'] < ballast.nbytes / 2**20 + row['step_mib']


def test_same_losses_with_every_backbone(benchmark):
    from benchmarking.options import Options
    from benchmarking.rows import Row
    from benchmarking.subjects import Subject, Task

    task = Task(Options(config=str(MASK_RCNN), mode='train'), 2, (64, 96))
    losses = [Subject(Row(peer, peer, 'fp32'), task).step().item() for peer in ('ours', 'official', 'transformers')]
    assert losses[0] > 0 and losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_scaling(benchmark, tmp_path):
    from benchmarking.timing import exponent

    assert exponent([(1, 5), (2, 20), (4, 80)]) == 2
    assert exponent([(3, 5), (3, 6)]) is None
    message, text, figures = benchmark(
        'scaling',
        *TINY,
        '--size',
        '32x32',
        '64x64',
        '--batch',
        1,
        2,
        '--rounds',
        1,
        '--no-memory',
        '--only',
        'ours',
        '--plot',
        tmp_path / 'plot.svg',
    )
    assert message is None
    points = {(point['batch'], point['height'], point['width']): point['min'] for point in figures['points']}
    assert set(points) == {(1, 32, 32), (1, 64, 64), (2, 32, 32)}
    found = figures['exponents']['ours fp32']
    log = torch.tensor([points[1, 32, 32], points[1, 64, 64], points[2, 32, 32]]).log2()
    assert found['min against pixels'] == pytest.approx(float(log[1] - log[0]) / 2, abs=2e-3)
    assert found['min against batch'] == pytest.approx(float(log[2] - log[0]), abs=2e-3)
    assert found['step_mib against pixels'] is None
    assert '<svg' in (tmp_path / 'plot.svg').read_text()


def test_optimizer(benchmark):
    message, _, figures = benchmark('optimizer', *TINY, '--rounds', 1)
    assert message is None
    groups = {row['name']: row['groups'] for row in figures['rows']}
    tensors = sum(1 for _ in ConvNeXt('atto').parameters())
    assert groups['a group a tensor, default'] == groups['a group a tensor, fused'] == tensors
    assert groups['merged groups, default'] == groups['merged groups, fused'] < 20


def test_profile_names_the_operators(benchmark):
    message, text, figures = benchmark(
        'profile', *PROFILE, '--mode', 'train', '--size', '32x64', '--only', 'ours', 'timm'
    )
    assert message is None
    assert names(figures) == ['ours fp32', 'timm fp32', 'timm channels_last fp32']
    for row in figures['rows']:
        kinds = row['operators']
        assert row['total'] == sum(kinds.values())
        assert min(kinds[kind] for kind in ('matrix products', 'convolutions', 'LayerNorm', 'GELU')) > 0
        assert f'| {row["name"]} | fp32 | {row["total"]:.1f} |' in text
    # atto: multiply-adds of the Linears of a block, 8 C^2 a token; 2 operations each, and twice more backward.
    linears = sum(
        8 * channels**2 * depth * batch_tokens
        for channels, depth, batch_tokens in zip((40, 80, 160, 320), (2, 2, 6, 2), (256, 64, 16, 4))
    )
    ours = figures['rows'][0]
    assert ours['linear_gflop_per_s'] * ours['operators']['matrix products'] == pytest.approx(6 * linears / 1e6)


@pytest.mark.parametrize(
    'options, message',
    [
        (
            ['time', *TINY, '--only', 'nonesuch'],
            "error: --only 'nonesuch': there is no such row here, choose from mmpretrain, official, ",
        ),
        (['time', *TINY, '--ours', 'lean'], 'error: --ours lean: write NAME:KEY=VALUE,KEY=VALUE'),
        (['time', *TINY, '--batch', 1, 2], 'error: several batches or sizes are for the subcommand scaling'),
        (['time', *TINY, '--size', '800'], "error: '800' is not an image size: write HEIGHTxWIDTH"),
        (['time', *TINY, '--cast', '--mode', 'train'], 'error: --cast is for inference'),
        (['time', *TINY, '--rounds', 0], 'error: --rounds, --warmup and --batch need at least 1'),
        (['time', '--device', 'cpu', '--arch', 'giant'], "error: ConvNeXt has no arch 'giant': use one of atto"),
        (['scaling', *TINY, '--config', MASK_RCNN, '--drop-path', 0.1], 'error: --drop-path: the config has its own'),
        (['scaling', *TINY, '--cfg-options', 'a=1'], 'error: --cfg-options changes a config: give --config'),
        (
            ['model', MASK_RCNN, '--device', 'cpu', '--cfg-options', 'model.backbone.use_grn=True'],
            "error: the backbone of this config has {'layer_scale_init_value': 1.0, 'use_grn': True}",
        ),
        (['model', ROOT / 'nonesuch.py', '--device', 'cpu'], 'error: there is no config file '),
    ],
)
def test_refused(options, message, benchmark):
    found, _, figures = benchmark(*options)
    assert found.startswith(message) and figures is None


def test_profile_and_plot_belong_to_their_subcommands(benchmark, capsys):
    """argparse's own refusal, with its own status."""
    assert benchmark('profile', *PROFILE, '--config', MASK_RCNN)[0] == 2
    assert benchmark('time', *TINY, '--plot', 'plot.svg')[0] == 2


def test_published_files_name_commands_that_are_understood(benchmark):
    """Each JSON file in docs/benchmarks holds its command, the Markdown beside it the same one."""
    from benchmark import build_parser
    from benchmarking.options import options_of

    files = sorted((ROOT / 'docs/benchmarks').glob('cpu_*.json'))
    assert len(files) == 19
    for path in files:
        published = json.loads(path.read_text())
        program, script, *argv = shlex.split(published['command'])
        assert (program, script) == ('python', 'tools/dev/benchmark.py')
        assert f'`{published["command"]}`\n' in path.with_suffix('.md').read_text()
        parsed = build_parser().parse_args(argv)
        if parsed.command == 'whole-model':
            assert (parsed.config, parsed.rounds) == (published['config'], published['rounds'])
            continue
        options, recorded = options_of(parsed), published['options']
        names = ['mode', 'arch']
        if options.command != 'optimizer':
            names += ['dtype', 'cast', 'layout', 'compile', 'drop_path', 'ours', 'only']
        if options.command != 'profile':
            names += ['rounds', 'warmup']
        for name in names:
            assert getattr(options, name) == recorded[name], (path.name, name)
        assert options.config == recorded['config']


def test_cost_of_the_hooks_in_a_step(benchmark, digits, monkeypatch):
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(digits))
    options = ['train_dataloader.batch_size=2']
    message, _, figures = benchmark('protection', MASK_RCNN, '--rounds', 2, '--warmup', 1, '--cfg-options', *options)
    assert message is None
    rows = figures['rows']
    assert [len(rows[name]['seconds']) for name in ('with', 'without', 'in hooks')] == [2, 2, 2]
    assert all(0 < inside < step for inside, step in zip(rows['in hooks']['seconds'], rows['with']['seconds']))
    assert figures['percent_of_a_step'] == 100 * rows['in hooks']['median'] / rows['with']['median']
    assert figures['ratio_of_minima'] == rows['with']['min'] / rows['without']['min']


def test_cost_of_the_rule_in_a_step(benchmark, monkeypatch):
    from convnext_dense.models import block, fusion_rule

    message, _, figures = benchmark('rule', '--rounds', 2, '--warmup', 1)
    assert message is None and block.what_to_fuse is fusion_rule.what_to_fuse
    for mode in ('train', 'inference'):
        found = figures[mode]
        assert found['blocks'] == 12  # 2 + 2 + 6 + 2 of atto
        assert set(found['shares']) == {'rule_in_step', 'rule_behind_step', 'rule_in_loop'}
        for name, share in found['shares'].items():
            assert share == pytest.approx(found[name] / found['step'], abs=2e-5) and share > 0
        assert found['step'] > found['rule_in_step']
    monkeypatch.setenv('CONVNEXT_DENSE_KERNELS', 'eager')
    message = benchmark('rule', '--rounds', 1)[0]
    assert message == (
        'error: no block runs fused here, so that there is nothing to compare: unset CONVNEXT_DENSE_KERNELS'
    )
