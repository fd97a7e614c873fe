"""The long form of the fault tests, with the real tools in fresh processes: python tools/dev/soak.py FOLDER

- kills: a training is killed by SIGKILL at random moments and resumed, and ends bit by bit as one that never was.
- two processes: the same under tools/dist_train.sh; the launcher, one process or all of them are killed.
- places: the work folder is full or read-only, by mounts in a private namespace (root only).
- memory: one training without a fault; how the resident memory of its processes rises.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / 'tests/faults/toy_iterations.py'
DIGITS = ROOT / 'configs/mask_rcnn/convnext_digits.py'
# Seconds to a kill, from the first iterations that are logged, or for each fourth kill from the start.
LONGEST_WAIT = 15.0
STARTED = '(train)'  # in the log
EVERY = 50  # iterations between checkpoints
TEN_MINUTES = 600.0
PORT = 29517


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0].split(':')[0])
    parser.add_argument('folder', type=Path, help='a folder that does not exist yet')
    parser.add_argument('--minutes', type=float, default=30, help='of killing and resuming, and of the memory run')
    parser.add_argument('--kills', type=int, default=20, help='at least so many in one process, a quarter in two')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', nargs='+', choices=list(PARTS), default=list(PARTS), metavar='PART')
    parser.add_argument('--json', type=Path, help='write or update the results')
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in args.only:
        print(f'{name} ...', flush=True)
        begin = time.time()
        results[name] = PARTS[name](args.folder / name.replace(' ', '_'), args)
        results[name]['seconds'] = round(time.time() - begin)
        print(json.dumps(results[name], indent=1), flush=True)
    results['commit'] = _commit()
    results['machine'] = dict(cpus=os.cpu_count(), python=platform.python_version(), torch=torch.__version__)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + '\n')


def _commit() -> str:
    """The commit of this checkout, with a plus behind it if files differ from it."""
    done = subprocess.run(['git', 'describe', '--always', '--dirty=+'], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or 'unknown'


# Killed and resumed


def kills(folder: Path, args: Any) -> dict[str, Any]:
    return _kill_and_resume(
        folder, args, [sys.executable, ROOT / 'tools/train.py', TOY, '--no-report'], args.minutes, args.kills
    )


def two_processes(folder: Path, args: Any) -> dict[str, Any]:
    command = [ROOT / 'tools/dist_train.sh', TOY, 2, '--no-report']
    return _kill_and_resume(folder, args, command, args.minutes / 6, -(-args.kills // 4))


def _kill_and_resume(folder: Path, args: Any, command: list[Any], minutes: float, wanted: int) -> dict[str, Any]:
    """Kill and resume until both the time and the number of kills are reached, then compare with a whole training."""
    generator = random.Random(args.seed)
    work = folder / 'work'
    deadline = time.time() + 60 * minutes
    resumed, moments, iterations = 0, [], [0]
    options = [*_settings(10**6), 'train_dataloader.num_workers=2']
    while time.time() < deadline or len(moments) < wanted:
        process = _start(command, work, ['--resume'], options)
        moment = generator.uniform(0, LONGEST_WAIT)
        if len(moments) % 4:
            _wait_for_iterations(process, work)
        text = _kill_at(process, moment, generator.choice(['one', 'all', 'all']))
        if text is not None:
            raise SystemExit(f'ended by itself before the kill at {moment:.1f} s:\n{text[-3000:]}')
        moments.append(round(moment, 1))
        saved = _newest(work)
        if saved < iterations[-1]:
            raise SystemExit(f'iteration {iterations[-1]} was saved, now the newest file is of {saved}')
        resumed += saved > 0
        iterations.append(saved)
    if resumed < len(moments) // 2:
        raise SystemExit(f'only {resumed} of {len(moments)} kills came behind a checkpoint: this shows little')
    total = iterations[-1] + EVERY
    last = [*_settings(total), 'train_dataloader.num_workers=2']
    _run(command, work, ['--resume'], last)
    _run(command, folder / 'whole', [], last)
    name = f'iter_{total}.pth'
    return dict(
        kills=len(moments),
        seconds_to_kill=moments,
        behind_a_checkpoint=resumed,
        iterations=total,
        saved_behind_each_kill=iterations[1:],
        differing_tensors=_differing(work / name, folder / 'whole' / name),
        temporary_files_left=[path.name for path in work.rglob('*.tmp')],
        processes_left=_left(folder),
    )


def _settings(iterations: int) -> list[str]:
    return [
        f'train_cfg.max_iters={iterations}',
        f'train_cfg.val_interval={EVERY}',
        f'default_hooks.checkpoint.interval={EVERY}',
        'default_hooks.checkpoint.max_keep_ckpts=2',
        'default_hooks.logger.interval=50',
        'train_dataloader.dataset.augment=True',
        'train_dataloader.dataset.length=2000',
    ]


def _start(command: list[Any], work: Path, arguments: list[str], options: list[str]) -> subprocess.Popen:
    paths = os.pathsep.join([str(TOY.parent), str(ROOT)])
    env = dict(
        os.environ, PYTHONPATH=paths, PYTHON=sys.executable, PORT=str(PORT), OMP_NUM_THREADS='1', MPLBACKEND='Agg'
    )
    work.parent.mkdir(parents=True, exist_ok=True)
    log = work.parent / 'log.txt'
    with log.open('w') as stream:
        return subprocess.Popen(
            [*map(str, command), '--work-dir', str(work), *arguments, '--no-data-check', '--cfg-options', *options],
            stdout=stream, stderr=subprocess.STDOUT, env=env, start_new_session=True,
        )  # fmt: skip


def _wait_for_iterations(process: subprocess.Popen, work: Path) -> None:
    log = work.parent / 'log.txt'
    while STARTED not in log.read_text() and process.poll() is None:
        time.sleep(0.2)


def _run(command: list[Any], work: Path, arguments: list[str], options: list[str]) -> None:
    process = _start(command, work, arguments, options)
    if process.wait():
        raise SystemExit(f'ended with {process.returncode}:\n{(work.parent / "log.txt").read_text()[-3000:]}')


def _kill_at(process: subprocess.Popen, moment: float, who: str) -> str | None:
    """Kill the whole family of a process, or its youngest training process first; its log if it ended before."""
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        family = psutil.Process(process.pid).children(recursive=True)
        trainings = [part for part in family if 'train.py' in ' '.join(_command(part))]
        if who == 'one' and trainings:
            trainings[-1].kill()
            psutil.wait_procs(family, timeout=40)  # its launcher has to end the others
        for part in [*family, psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                part.kill()
        process.wait()
        psutil.wait_procs(family, timeout=20)
        return None
    return (Path(process.args[process.args.index('--work-dir') + 1]).parent / 'log.txt').read_text()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _newest(work: Path) -> int:
    """The iteration of the newest checkpoint that reads completely."""
    for path in sorted(work.glob('iter_*.pth'), key=lambda path: -int(path.stem.split('_')[1])):
        try:
            return int(torch.load(path, weights_only=False)['meta']['iter'])
        except Exception as error:  # whatever torch makes of half a file
            raise SystemExit(f'{path} does not read: {error}') from error
    return 0


def _differing(one: Path, other: Path) -> list[str]:
    """The names of tensors of weights and optimizer that are not equal bit by bit."""
    first, second = (_tensors(torch.load(path, weights_only=False)) for path in (one, other))
    if first.keys() != second.keys():
        return sorted(first.keys() ^ second.keys())
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def _tensors(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = dict(checkpoint['state_dict'])
    for number, state in checkpoint['optimizer']['state'].items():
        tensors.update({f'optimizer {number} {name}': torch.as_tensor(value) for name, value in state.items()})
    for rank, states in enumerate(checkpoint['random_states']):
        tensors[f'random numbers {rank}'] = states['torch']
    return tensors


def _left(folder: Path) -> list[str]:
    """The command lines of processes that still name the folder."""
    own = os.getpid()
    commands = {process.pid: ' '.join(_command(process)) for process in psutil.process_iter()}
    return [command for pid, command in commands.items() if str(folder) in command and pid != own]


# Places


def places(folder: Path, args: Any) -> dict[str, Any]:
    """Train where there is no room or no permission, go on where there is."""
    if os.geteuid() or shutil.which('unshare') is None:
        return dict(skipped='mounts need root and unshare')
    folder.mkdir()
    results = {}
    for name, mount in (
        ('full from the start', 'mount -t tmpfs -o size=16k none {work}'),
        ('full after some checkpoints', 'mount -t tmpfs -o size=400k none {work}'),
        ('read-only', 'mount -t tmpfs -o ro none {work}'),
    ):
        work, kept = folder / 'work', folder / 'kept'
        work.mkdir()
        train = ' '.join(
            [
                sys.executable,
                str(ROOT / 'tools/train.py'),
                str(TOY),
                '--work-dir',
                str(work),
                '--no-data-check',
                '--no-report',
            ]
            + ['--cfg-options', *_settings(2000), 'default_hooks.checkpoint.max_keep_ckpts=-1']
        )
        script = (
            f'{mount.format(work=work)}; {train} > {folder}/log.txt 2>&1; status=$?; cp -a {work} {kept}; exit $status'
        )
        paths = os.pathsep.join([str(TOY.parent), str(ROOT)])
        env = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS='1', MPLBACKEND='Agg')
        done = subprocess.run(['unshare', '-m', 'sh', '-c', script], env=env)
        lines = (folder / 'log.txt').read_text().splitlines()
        errors = [line.replace(str(folder), '...') for line in lines if line.startswith('error: ')]
        result: dict[str, Any] = dict(
            status=done.returncode, error=errors[-1:], traceback='Traceback' in ' '.join(lines)
        )
        result['newest_checkpoint'] = _newest(kept)
        result['temporary_files_left'] = [path.name for path in kept.rglob('*.tmp')]
        if result['newest_checkpoint']:
            total = result['newest_checkpoint'] + EVERY
            _run([sys.executable, ROOT / 'tools/train.py', TOY, '--no-report'], kept, ['--resume'], _settings(total))
            result['resumed_to'] = _newest(kept)
        results[name] = result
        shutil.rmtree(work)
        shutil.rmtree(kept)
    return results


# Memory


def memory(folder: Path, args: Any) -> dict[str, Any]:
    """Train the digits without a fault, and fit a line to the resident memory behind the first third."""
    from convnext_dense.sample_data import write_sample_data

    write_sample_data(folder / 'data/digits')
    os.environ['CONVNEXT_DENSE_DATA'] = str(folder / 'data')
    process = _start(
        [sys.executable, ROOT / 'tools/train.py', DIGITS, '--no-report'], folder / 'work', [],
        ['train_cfg.max_epochs=10000', 'train_cfg.val_interval=10000', 'default_hooks.checkpoint.max_keep_ckpts=1'],
    )  # fmt: skip
    seconds, megabytes, most = [], [], 0
    begin = time.time()
    while time.time() - begin < 60 * args.minutes:
        time.sleep(5)
        if process.poll() is not None:
            raise SystemExit(f'ended with {process.returncode}:\n{(folder / "log.txt").read_text()[-3000:]}')
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        resident = 0
        for part in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                resident += part.memory_info().rss
        seconds.append(time.time() - begin)
        megabytes.append(resident / 2**20)
        most = max(most, len(family))
    process.send_signal(signal.SIGTERM)
    status = process.wait(300)
    behind = np.array(seconds) > max(seconds) / 3
    slope, level = np.polyfit(np.array(seconds)[behind], np.array(megabytes)[behind], 1)
    middle = level + slope * max(seconds) / 3
    return dict(
        minutes=round(max(seconds) / 60, 1),
        megabytes_after_a_third=round(float(middle)),
        largest_megabytes=round(max(megabytes)),
        percent_per_ten_minutes=round(100 * TEN_MINUTES * float(slope) / float(middle), 3),
        iteration_saved=_newest(folder / 'work'),
        status_on_sigterm=status,
        processes=most,
        processes_left=_left(folder),
        temporary_files_left=[path.name for path in (folder / 'work').rglob('*.tmp')],
    )


PARTS = {'kills': kills, 'two processes': two_processes, 'places': places, 'memory': memory}

if __name__ == '__main__':
    main()
