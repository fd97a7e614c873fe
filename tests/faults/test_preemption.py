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
from helpers import ROOT, kill_all
from test_distributed import free_port
from test_resume import assert_same_training

LONG = ('train_cfg.max_epochs=200', 'default_hooks.checkpoint.interval=200', 'train_dataloader.num_workers=2')


def start(command: list, work: Path, *options: str) -> subprocess.Popen:
    """Start a training in a process group of its own; returns when it has trained an iteration."""
    paths = os.pathsep.join([str(TOY.parent), str(ROOT)])
    env = dict(
        os.environ,
        PYTHONPATH=paths,
        PYTHON=sys.executable,
        PORT=str(free_port()),
        OMP_NUM_THREADS='1',
        MPLBACKEND='Agg',
    )
    process = subprocess.Popen(
        [*map(str, command), '--work-dir', str(work), '--no-data-check', '--cfg-options', *LONG, *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True,
    )  # fmt: skip
    seen = []
    for line in process.stdout:
        seen.append(line)
        if 'Epoch(train)' in line:
            return process
    pytest.fail(''.join(seen[-30:]))


def preempted(work: Path) -> dict:
    return json.loads((work / 'preempted.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGHUP', 'SIGINT'])
@pytest.mark.parametrize('to', ['process', 'group'])
def test_signal_saves_and_ends_with_75(name, to, train, tmp_path):
    work = tmp_path / 'work'
    process = start([sys.executable, ROOT / 'tools/train.py', TOY], work)
    (os.killpg if to == 'group' else os.kill)(process.pid, signal.Signals[name])
    text, _ = process.communicate(timeout=120)
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
def test_second_signal_ends_at_once(tmp_path):
    process = start([sys.executable, ROOT / 'tools/train.py', TOY], tmp_path / 'work')
    process.send_signal(signal.SIGSTOP)  # so that both are there before the next iteration
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGUSR1)
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGUSR1', 'SIGTERM'])
def test_script_turns_a_signal_into_75(name, tmp_path):
    """Both processes agree on the iteration; the script's status is that of a preemption, not torchrun's."""
    process = start([ROOT / 'tools/dist_train.sh', TOY, 2], tmp_path / 'work')
    process.send_signal(signal.Signals[name])
    text, _ = process.communicate(timeout=120)
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
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
        assert process.wait(timeout=20) != 75
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
    deadline = time.time() + 120
    while 'Epoch(train)' not in ((tmp_path / 'log').read_text() if (tmp_path / 'log').exists() else ''):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
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
