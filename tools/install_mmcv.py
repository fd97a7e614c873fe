"""Build mmcv with its compiled operators against the torch of this environment, or take such a build from the cache.

Not needed for the models of mmdet and mmseg: convnext_dense/mmcv_ops provides their operators. Needed for the others,
and for mmcv's own kernels on a GPU. Takes the place of mmcv-lite.

mmcv publishes no wheel for current torch, and an isolated build (where torch is absent) silently leaves the operators
out. The wheel built here is kept in the user's cache, keyed by everything its binary depends on, so that the next
environment on the same machine installs it in seconds.
"""

import argparse
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the repository, or .mim in an installed package
PACKAGE = ROOT.parent if ROOT.name == '.mim' else ROOT / 'convnext_dense'
# By its path: `make install` asks before the package is installed.
KNOWN = runpy.run_path(str(PACKAGE / 'distributions.py'))
DISTRIBUTIONS = {'mmcv': 'openmmlab', 'onedl-mmcv': 'onedl'}  # what can be built, and the set that it belongs to
CHECK = 'import mmcv, mmcv._ext; print(mmcv.__version__)'


def cache_folder(dist: str, version: str) -> Path:
    """Folder of the wheel in the user cache: one per python, torch, mmcv, machine and CUDA (with the GPU) or not."""
    import torch

    device = 'cpu'
    if torch.cuda.is_available():
        device = 'cuda{}-sm{}{}'.format(torch.version.cuda, *torch.cuda.get_device_capability())
    elif os.environ.get('FORCE_CUDA') == '1':
        device = f'cuda{torch.version.cuda}-{os.environ.get("TORCH_CUDA_ARCH_LIST", "all")}'.replace(' ', '_')
    key = '-'.join(
        (
            dist,
            version,
            f'torch{torch.__version__}',
            device,
            sys.implementation.cache_tag,
            platform.system().lower(),
            platform.machine(),
        )
    )
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'convnext-dense' / 'wheels' / key


def installed_version(dist: str) -> str | None:
    return KNOWN['installed']([dist]).get(dist)


def refuse_mixture(dist: str) -> None:
    """Exit with one sentence when the other distribution is installed here."""
    others = []
    for extra, versions in KNOWN['installed_sets']().items():
        if extra != DISTRIBUTIONS[dist]:
            others += versions
    if others:
        sys.exit(
            f'error: {", ".join(others)} and {dist} in one environment ({sys.prefix}) would overwrite each '
            'other: use another environment (make VENV=FOLDER), or uninstall the former'
        )


def check_compiler() -> None:
    """Exit with one sentence when what the build needs is not there."""
    compiler = os.environ.get('CXX', 'c++')
    if not shutil.which(compiler.split()[0]):
        sys.exit(
            f'error: mmcv has to be compiled, and no C++ compiler "{compiler}" was found: install one '
            '(Debian / Ubuntu: apt-get install g++) or set CXX'
        )
    if not (Path(sysconfig.get_paths()['include']) / 'Python.h').exists():
        sys.exit(
            'error: mmcv has to be compiled, and the headers of this Python were not found: install them '
            '(Debian / Ubuntu: apt-get install python3-dev)'
        )


def build_wheel(dist: str, version: str, folder: Path) -> None:
    """Compile ``dist`` and move the finished wheel into ``folder``; show how far the compiler has come."""
    check_compiler()
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f'building {dist} {version} with its operators: once per machine, about 10 minutes on 2 cores', flush=True)
    scripts = str(Path(sys.executable).parent)  # ninja lives there
    env = dict(os.environ, MMCV_WITH_OPS='1', PATH=scripts + os.pathsep + os.environ['PATH'])
    env['CFLAGS'] = env.get('CFLAGS', '') + ' -g0'  # no debug information: a third less time
    with tempfile.TemporaryDirectory(dir=folder.parent) as temp:
        log = Path(tempfile.gettempdir()) / f'{dist}-build-{os.getpid()}.log'
        command = [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-v',
            '--no-build-isolation',
            '--no-deps',
            '--no-cache-dir',
            '--no-binary',
            dist,
            '-w',
            temp,
            f'{dist}=={version}',
        ]
        begin, shown = time.time(), -1
        with (
            log.open('w') as out,
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
            ) as process,
        ):
            for line in process.stdout:
                out.write(line)
                step = re.match(r'\s*\[(\d+)/(\d+)\]', line)  # ninja's own counter
                if not step:
                    continue
                done, total = map(int, step.groups())
                percent = 100 * done // total
                if sys.stdout.isatty() or percent // 10 > shown // 10:
                    shown = percent
                    print(
                        f'  compiled {done} of {total} files, {time.time() - begin:.0f} s',
                        end='\r' if sys.stdout.isatty() else '\n',
                        flush=True,
                    )
        wheels = list(Path(temp).glob('*.whl'))
        if process.returncode or not wheels:
            tail = log.read_text(errors='replace').splitlines()[-25:]
            print('\n'.join(tail), file=sys.stderr)
            sys.exit(f'error: building {dist} {version} failed (exit {process.returncode}); the whole log: {log}')
        log.unlink()
        folder.mkdir(exist_ok=True)
        wheels[0].replace(folder / wheels[0].name)  # atomic: two builds at once do not see half a wheel
    print(f'\n  kept in {folder}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('dist', nargs='?', default='mmcv', choices=DISTRIBUTIONS, help='default: mmcv')
    parser.add_argument(
        '--refuse-mixture', action='store_true', help='only check that the other distribution is not installed here'
    )
    parser.add_argument(
        '-c',
        '--constraints',
        type=Path,
        default=ROOT / 'constraints.txt',
        help='file that pins the version as NAME==VERSION',
    )
    args = parser.parse_args()
    refuse_mixture(args.dist)
    if args.refuse_mixture:
        return
    pin = re.search(rf'^{args.dist}==([^\s;]+)', args.constraints.read_text(), re.M)
    if not pin:
        sys.exit(f'error: {args.constraints} has no line {args.dist}==VERSION')
    version = pin.group(1)
    folder = cache_folder(args.dist, version)
    if installed_version('mmcv-lite'):
        # It owns the same folder. Where mmcv was there as well, the check below finds it broken.
        subprocess.run([sys.executable, '-m', 'pip', 'uninstall', '-q', '-y', 'mmcv-lite'], check=True)
    if (
        installed_version(args.dist) == version
        and subprocess.run([sys.executable, '-c', CHECK], capture_output=True).returncode == 0
    ):
        return
    if not list(folder.glob('*.whl')):
        build_wheel(args.dist, version, folder)
    (wheel,) = folder.glob('*.whl')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--force-reinstall', str(wheel)], check=True
    )
    check = subprocess.run([sys.executable, '-c', CHECK], capture_output=True, text=True)
    if check.returncode:
        shutil.rmtree(folder)
        sys.exit(f'error: {wheel.name} from {folder} does not import, it was removed: run this again.\n{check.stderr}')
    print(f'installed {args.dist} {version} with operators')


if __name__ == '__main__':
    main()
