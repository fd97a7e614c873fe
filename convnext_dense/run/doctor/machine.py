"""Checks of the machine: GPU, memory, the folders that a training writes to, and variables that name folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from convnext_dense.outputs import nearest_existing, write_probe
from convnext_dense.run.doctor.diagnosis import Diagnosis, gigabytes, note, ok, problem

MEMINFO = Path('/proc/meminfo')
# Limits of a container, by version of cgroups: (limit, use).
CGROUPS = (
    (Path('/sys/fs/cgroup/memory.max'), Path('/sys/fs/cgroup/memory.current')),
    (Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'), Path('/sys/fs/cgroup/memory/memory.usage_in_bytes')),
)
NVIDIA = Path('/proc/driver/nvidia/version')
SHARED_MEMORY = Path('/dev/shm')
FOLDER_VARIABLES = ('CONVNEXT_DENSE_WEIGHTS', 'CONVNEXT_DENSE_DATA')

# The toolkits, a small model and two data workers.
MINIMAL_MEMORY = 2 * 2**30
# Data workers pass batches through it; a batch of 16 images of 800 x 1333 in uint8 has 51 MB, and two wait per worker.
USUAL_SHARED_MEMORY = 2**30
# Logs, and a checkpoint of a small model.
MINIMAL_DISK = 2**30


def gpu() -> Iterator[Diagnosis]:
    """Whether torch can use a GPU, if there is one."""
    try:
        import torch
    except ModuleNotFoundError:
        return  # `requirements` says that
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield from _one_gpu(index)
        return
    why = 'a training on CPUs takes many times as long'
    if not NVIDIA.exists():
        yield note('there is no GPU', why, 'nothing, for small models and data; otherwise use a machine with a GPU')
    elif torch.version.cuda is None:
        yield note(
            f'this machine has an NVIDIA driver, but torch {torch.__version__} is built for CPUs',
            why,
            'install the CUDA build of torch and torchvision that https://pytorch.org/get-started names',
        )
    else:
        yield note(
            f'torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPU of this machine',
            why,
            f'run nvidia-smi: its CUDA version has to be {torch.version.cuda} or newer; CUDA_VISIBLE_DEVICES is '
            f'{os.environ.get("CUDA_VISIBLE_DEVICES", "not set")}',
        )


def _one_gpu(index: int) -> Iterator[Diagnosis]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    architecture = f'sm_{properties.major}{properties.minor}'
    built = torch.cuda.get_arch_list()
    # A binary runs on every minor version of its major version that is not lower.
    same_major = [name for name in built if name.startswith(f'sm_{properties.major}') and name <= architecture]
    if built and not same_major and not any(name.startswith('compute_') for name in built):
        yield problem(
            f'GPU {index}, {properties.name}, is {architecture}, and torch {torch.__version__} is built for '
            f'{", ".join(built)}',
            'the first operator on that GPU fails',
            'install a build of torch for it: https://pytorch.org/get-started',
        )
        return
    free, total = torch.cuda.mem_get_info(index)
    if free < total / 2:
        yield note(
            f'GPU {index}, {properties.name}, has {gigabytes(free)} of {gigabytes(total)} free',
            'other processes use the rest, and a training may run out of memory',
            'see them by nvidia-smi, or choose another GPU by CUDA_VISIBLE_DEVICES',
        )
    else:
        yield ok(f'GPU {index}: {properties.name}, {gigabytes(free)} of {gigabytes(total)} free')


def memory() -> Iterator[Diagnosis]:
    """Whether the machine has memory left."""
    available = available_memory()
    if available is None:
        yield note(
            'the memory of this machine is not known', 'it may be too little for a training', 'look at it yourself'
        )
    elif available < MINIMAL_MEMORY:
        yield problem(
            f'{gigabytes(available)} of memory are available',
            f'a training of the smallest model needs about {gigabytes(MINIMAL_MEMORY)}',
            'end other processes, or raise the limit of the container (docker run --memory=16g)',
        )
    else:
        yield ok(f'{gigabytes(available)} of memory are available')


def available_memory() -> int | None:
    """Return the bytes that new processes can use here, in this container; None where the system does not say."""
    found = []
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith('MemAvailable:'):
                found.append(int(line.split()[1]) * 2**10)
    except OSError:
        pass
    for limit, use in CGROUPS:
        try:
            found.append(int(limit.read_text()) - int(use.read_text()))
        except (OSError, ValueError):  # 'max' is no limit
            continue
    return min(found) if found else None


def shared_memory() -> Iterator[Diagnosis]:
    """Whether data workers can pass batches to the training."""
    if not SHARED_MEMORY.is_dir():
        return
    usage = shutil.disk_usage(SHARED_MEMORY)
    if usage.free < USUAL_SHARED_MEMORY:
        yield note(
            f'{SHARED_MEMORY} has {gigabytes(usage.free)} free',
            'data workers pass batches through it, and end with "Bus error" where it is full',
            'docker run --shm-size=8g, or --cfg-options train_dataloader.num_workers=0 '
            'train_dataloader.persistent_workers=False',
        )
    else:
        yield ok(f'{SHARED_MEMORY} has {gigabytes(usage.free)} free')


def work_folder(folder: Path) -> Iterator[Diagnosis]:
    """Whether the work folder can be written to and its disk has room for a small run.

    Args:
        folder: The work folder, which need not exist.
    """
    reason = why_not_writable(folder)
    why = 'logs and checkpoints are written there'
    if reason:
        yield problem(f'the work folder {folder} cannot be written to ({reason})', why, 'give another by --work-dir')
        return
    free = free_space(folder)
    if free < MINIMAL_DISK:
        yield problem(
            f'the disk of the work folder {folder} has {gigabytes(free)} free',
            why,
            'make room, or give a folder on another disk by --work-dir',
        )
    else:
        yield ok(f'the disk of the work folder {folder} has {gigabytes(free)} free')


def home_and_caches() -> Iterator[Diagnosis]:
    """Whether the folders can be written to that libraries keep files in: downloads, fonts, checked data."""
    good = []
    for name, folder, variable, why in _caches():
        reason = why_not_writable(folder)
        if reason:
            fix = f'export {variable}=FOLDER, with a folder that can be written to'
            yield note(f'the folder of {name}, {folder}, cannot be written to ({reason})', why, fix)
        else:
            good.append(str(folder))
    if good:
        yield ok(f'{", ".join(good)} can be written to')


def _caches() -> Iterator[tuple[str, Path, str, str]]:
    """Yield what each cache holds, its folder, the variable that moves it, and what happens without it."""
    home = Path(os.environ.get('HOME') or '~').expanduser()
    caches = Path(os.environ.get('XDG_CACHE_HOME') or home / '.cache')
    torch_home = Path(os.environ.get('TORCH_HOME') or caches / 'torch').expanduser()
    config = Path(os.environ.get('XDG_CONFIG_HOME') or home / '.config')
    fonts = Path(os.environ.get('MPLCONFIGDIR') or config / 'matplotlib').expanduser()
    hub = Path(os.environ.get('HF_HOME') or caches / 'huggingface').expanduser()
    yield 'your home', home, 'HOME', 'libraries keep settings there'
    yield 'downloaded weights', torch_home / 'hub', 'TORCH_HOME', 'weights that are not there yet cannot be downloaded'
    yield 'weights of hubs', hub, 'HF_HOME', 'hf-hub: and timm: weights cannot be downloaded'
    yield 'matplotlib', fonts, 'MPLCONFIGDIR', 'every start of a tool takes seconds longer'
    yield (
        'checked data',
        caches / 'convnext_dense',
        'XDG_CACHE_HOME',
        'the data are checked anew before every training',
    )


def temporary_folder() -> Iterator[Diagnosis]:
    """Whether there is a folder for temporary files."""
    try:
        tempfile.tempdir = None  # look again
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield problem(
            f'there is no folder for temporary files ({error.strerror})',
            'torch and its data workers need one',
            'export TMPDIR=FOLDER, with a folder that can be written to',
        )
        return
    free = free_space(folder)
    if free < 2**26:
        yield problem(
            f'the folder of temporary files, {folder}, has {gigabytes(free)} free',
            'torch and its data workers need it',
            'make room there, or export TMPDIR=FOLDER',
        )
    else:
        yield ok(f'the folder of temporary files, {folder}, has {gigabytes(free)} free')


def variables() -> Iterator[Diagnosis]:
    """Whether the folders exist that our variables name."""
    good = []
    for name in FOLDER_VARIABLES:
        value = os.environ.get(name)
        if not value:
            continue
        if Path(value).is_dir():
            good.append(f'{name}={value}')
        else:
            yield problem(
                f'{name}={value} is no folder', 'what is looked for there is not found', f'unset {name}, or correct it'
            )
    yield ok(', '.join(good) or f'{" and ".join(FOLDER_VARIABLES)} are not set')


def why_not_writable(folder: Path) -> str:
    """Return why a folder cannot be written to, or made; empty if it can. Nothing is left behind."""
    existing = nearest_existing(folder)
    if not existing.is_dir():
        return f'{existing} is a file'
    try:
        write_probe(existing)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ''


def free_space(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder, which need not exist."""
    return shutil.disk_usage(nearest_existing(folder)).free


# In the order in which they run.
CHECKS = (gpu, memory, shared_memory, work_folder, home_and_caches, temporary_folder, variables)
