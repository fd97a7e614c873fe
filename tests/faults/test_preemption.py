"""Kind 11 and preemption: signals to fresh processes of the real tools, and to torchrun through its script."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TOY
from forked import LONGEST
from fresh import LONG, start
from helpers import ROOT, kill_all
from test_resume import assert_same_training

LONG_VALIDATION = 'val_dataloader.dataset.length=200000'
# Config, the iteration before the first validation, the last checkpoint, and options.
LOOPS = dict(
    epochs=(TOY, 6, 'epoch_3.pth', ('train_cfg.max_epochs=3', 'default_hooks.checkpoint.interval=1')),
    iterations=(TOY.with_name('toy_iterations.py'), 5, 'iter_14.pth', ()),
)


def preempted(work: Path) -> dict:
    return json.loads((work / 'preempted.json').read_text())


def validations(work: Path) -> list[dict]:
    """What the validations of all runs in a work folder have found, without times."""
    rows = []
    for log in sorted(work.glob('*/vis_data/scalars.json')):
        rows += [json.loads(line) for line in log.read_text().splitlines()]
    return [dict(step=row['step'], score=row['score']) for row in rows if 'score' in row]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGHUP', 'SIGINT'])
@pytest.mark.parametrize('to', ['process', 'group'])
def test_signal_saves_and_ends_with_75(name, to, train, tmp_path):
    work = tmp_path / 'work'
    process = start([sys.executable, ROOT / 'tools/train.py', TOY], work)
    (os.killpg if to == 'group' else os.kill)(process.pid, signal.Signals[name])
    text, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 75, text
    record = preempted(work)
    assert record['signal'] == name
    saved = work / f'iter_{record["iteration"]}.pth'
    assert torch.load(saved, weights_only=False)['meta']['iter'] == record['iteration']
    if to == 'process' and name == 'SIGTERM':
        total = -(-record['iteration'] // 6) + 1  # one epoch more
        change = [f'train_cfg.max_epochs={total}']
        assert train('--resume', change=change).status == 0
        assert not (work / 'preempted.json').exists()
        assert train(change=change, work='whole').status == 0
        assert_same_training(tmp_path / 'whole' / f'epoch_{total}.pth', work / f'epoch_{total}.pth')


@pytest.mark.slow
@pytest.mark.parametrize('loop', LOOPS)
def test_signal_in_a_validation_saves_and_ends_with_75(loop, train, tmp_path):
    """The resumed run validates first, and ends as one that was never asked to end."""
    config, iteration, last, options = LOOPS[loop]
    whole = [*options, 'train_dataloader.num_workers=2']
    long = [*whole, LONG_VALIDATION]
    process = start([sys.executable, ROOT / 'tools/train.py', config], tmp_path / 'work', long, until='(val)')
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 75, text
    assert f'saved at iteration {iteration}; go on with --resume, which runs this validation again' in text
    assert preempted(tmp_path / 'work')['iteration'] == iteration
    assert validations(tmp_path / 'work') == []
    resumed = train('--resume', config=config, change=whole)
    assert resumed.status == 0, resumed.text
    assert train(config=config, change=whole, work='whole').status == 0
    assert_same_training(tmp_path / 'whole' / last, tmp_path / 'work' / last)
    assert validations(tmp_path / 'work') == validations(tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('who', ['script', 'one process'])
def test_processes_agree_in_a_validation(who, tmp_path):
    """One has a batch more than the other; if one alone gets the signal, it waits until the other has validated."""
    length = 200_001 if who == 'script' else 6001
    options = (
        f'val_dataloader.dataset.length={length}',
        'val_dataloader.batch_size=1',
        'val_dataloader.sampler.round_up=False',
    )
    process = start([ROOT / 'tools/dist_train.sh', TOY, 2], tmp_path / 'work', options, until='(val)')
    if who == 'script':
        process.send_signal(signal.SIGTERM)
    else:
        family = psutil.Process(process.pid).children(recursive=True)
        second = next(part for part in family if part.environ().get('RANK') == '1')
        second.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 75, text
    reason = 'SIGTERM' if who == 'script' else 'a signal to another process'
    assert preempted(tmp_path / 'work')['iteration'] == 3  # 12 images, 2 in each of 2 processes
    assert f'preempted by {reason}: saved at iteration 3; go on with --resume, which runs this' in text
    checkpoint = torch.load(tmp_path / 'work/iter_3.pth', weights_only=False)
    assert len(checkpoint['random_states']) == 2 and text.count('preempted by ') == 1
    assert validations(tmp_path / 'work') == []


@pytest.mark.slow
def test_second_signal_ends_at_once(tmp_path):
    process = start([sys.executable, ROOT / 'tools/train.py', TOY], tmp_path / 'work')
    process.send_signal(signal.SIGSTOP)  # so that both are there before the next iteration
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=LONGEST)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGUSR1)
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGUSR1', 'SIGTERM'])
def test_script_turns_a_signal_into_75(name, tmp_path):
    """Both processes agree on the iteration; the script's status is that of a preemption, not torchrun's."""
    process = start([ROOT / 'tools/dist_train.sh', TOY, 2], tmp_path / 'work')
    process.send_signal(signal.Signals[name])
    text, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 75, text
    record = preempted(tmp_path / 'work')
    checkpoint = torch.load(tmp_path / f'work/iter_{record["iteration"]}.pth', weights_only=False)
    assert len(checkpoint['random_states']) == 2 and text.count('preempted by ') == 1


@pytest.mark.slow
def test_workers_end_with_their_launcher(tmp_path):
    process = start([ROOT / 'tools/dist_train.sh', TOY, 2], tmp_path / 'work')
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        launcher = next(part for part in family if 'torch.distributed.run' in ' '.join(part.cmdline()))
        launcher.kill()
        _, alive = psutil.wait_procs(family, timeout=LONGEST)
        assert not alive
        assert process.wait(timeout=LONGEST) != 75
    finally:
        if process.poll() is None:
            kill_all(process)


@pytest.mark.slow
def test_slurm_script_queues_the_job_again(tmp_path):
    """srun and scontrol are replaced: this srun trains as the first task does, and passes the signal on."""
    work, asked = tmp_path / 'work', tmp_path / 'asked'
    (tmp_path / 'bin').mkdir()
    srun, scontrol = tmp_path / 'bin/srun', tmp_path / 'bin/scontrol'
    srun.write_text(f"""#!/bin/bash
{sys.executable} {ROOT}/tools/train.py {TOY} --work-dir {work} --no-data-check \\
    --cfg-options {' '.join(LONG)} > {tmp_path}/log 2>&1 &
trap "kill -USR1 $!" USR1
wait $!; status=$?
while kill -0 $! 2> /dev/null; do wait $!; status=$?; done
exit $status
""")
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    for path in (srun, scontrol):
        path.chmod(0o755)
    paths = os.pathsep.join([str(TOY.parent), str(ROOT)])
    env = dict(os.environ, PATH=f'{tmp_path}/bin:{os.environ["PATH"]}', SLURM_JOB_ID='41', PYTHONPATH=paths, GPUS='1')
    process = subprocess.Popen([ROOT / 'tools/slurm_train.sh', 'part', 'job', TOY], env=env, cwd=tmp_path)
    deadline = time.time() + LONGEST
    while 'Epoch(train)' not in ((tmp_path / 'log').read_text() if (tmp_path / 'log').exists() else ''):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=LONGEST) == 75
    assert asked.read_text().split() == ['requeue', '41'] and preempted(work)['signal'] == 'SIGUSR1'
    assert not list(tmp_path.glob('.preempted.*'))


def signal_at(iteration, name):
    def inject():
        from convnext_dense.engine.finite import FiniteStepsHook

        original = FiniteStepsHook.before_train_iter

        def ask(self, runner, batch_idx, data_batch=None):
            if runner.iter + 1 == iteration:
                os.kill(os.getpid(), signal.Signals[name])
            original(self, runner, batch_idx, data_batch)

        FiniteStepsHook.before_train_iter = ask

    return inject


@pytest.mark.parametrize('at', [1, 6, 8])
def test_preempted_and_resumed_is_bit_identical(at, train, tmp_path):
    """At the first iteration, at the end of an epoch of six, and inside one; in children of this process."""
    outcome = train(inject=signal_at(at, 'SIGUSR1'))
    assert outcome.status == 75 and f'preempted by SIGUSR1: saved at iteration {at}' in outcome.text
    assert preempted(tmp_path / 'work')['iteration'] == at
    assert train('--resume').status == 0
    assert train(work='whole').status == 0
    assert_same_training(tmp_path / 'whole/epoch_3.pth', tmp_path / 'work/epoch_3.pth')


def signal_in_validation(iteration, batch):
    """A fault: SIGTERM during a batch of the validation behind an iteration."""

    def inject():
        from convnext_dense.engine.finite import FiniteModelHook

        original = FiniteModelHook.before_val_iter

        def ask(self, runner, batch_idx, data_batch=None):
            if (runner.iter, batch_idx) == (iteration, batch):
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, runner, batch_idx, data_batch)

        FiniteModelHook.before_val_iter = ask

    return inject


# What depends on validations and their order, or exchanges weights for their time.
DEPENDING = """
custom_hooks = [dict(type='EMAHook', momentum=0.3)]
default_hooks = dict(checkpoint=dict(save_best='score', rule='greater'))
param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='score', factor=0.5, patience=0, rule='greater')]
val_dataloader = dict(dataset=dict(length=6))
val_evaluator = dict(type='OutputMetric')
"""


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('validation, batch', [(0, 0), (1, 1), (2, 2)], ids=['first', 'within', 'last'])
def test_preempted_in_a_validation_is_bit_identical(loop, validation, batch, train, tmp_path):
    """In the first batch of the first validation, within the second, in the last batch of the last; twice each."""
    base, _, last, _ = LOOPS[loop]
    config = tmp_path / 'depending.py'
    config.write_text(f'_base_ = [{str(base)!r}]\n{DEPENDING}')
    at = [(6, 12, 18), (5, 10, 14)][loop == 'iterations'][validation]
    for arguments in ((), ('--resume',)):
        outcome = train(*arguments, config=config, inject=signal_in_validation(at, batch))
        assert outcome.status == 75, outcome.text
        assert f'preempted by SIGTERM: saved at iteration {at}; go on with --resume, which runs this' in outcome.text
    resumed = train('--resume', config=config)
    assert resumed.status == 0, resumed.text
    assert resumed.text.count(f'the validation behind iteration {at} was cut short: it is run now') == 1
    whole = train(config=config, work='whole')
    assert whole.status == 0
    assert_same_training(tmp_path / 'whole' / last, tmp_path / 'work' / last)
    assert (
        validations(tmp_path / 'work') == validations(tmp_path / 'whole') and len(validations(tmp_path / 'work')) == 3
    )
    best, expected = (sorted((tmp_path / work).glob('best_*.pth')) for work in ('work', 'whole'))
    assert [path.name for path in best] == [path.name for path in expected]
    one, other = (torch.load(path, weights_only=False) for path in (*best, *expected))
    for name, value in other['state_dict'].items():
        assert torch.equal(one['state_dict'][name], value), name
    assert (tmp_path / 'work/metrics.json').read_text() == (tmp_path / 'whole/metrics.json').read_text()
