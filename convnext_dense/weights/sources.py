"""Where weight files come from: paths, URLs, hubs and short names."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from mmengine.dist import barrier
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from convnext_dense.errors import UserError
from convnext_dense.weights.safe_reading import clause, only_safe_loading, read_file, strip_code

FOLDER_VARIABLE = 'CONVNEXT_DENSE_WEIGHTS'

ENDINGS = ('', '.pth', '.pt', '.safetensors')

TIMEOUT = 30  # seconds without an answer

LICENCES = {'V1': 'MIT', 'V2': 'CC BY-NC 4.0, not for commercial use'}

# A path or URL behind this scheme is read by this module wherever mmengine reads checkpoints.
SCHEME = 'convnext-dense:'

SHORT_NAME = r'(?:(?:cascade_)?mask_rcnn_|upernet_)?convnext(?:v2)?_\w+$'


@cache
def official_files() -> dict[str, str]:
    """URLs of the official weight files by their short names."""
    lines = Path(__file__).with_name('official_weights.txt').read_text().split('\n')
    return {Path(urlsplit(line).path).stem: line for line in lines if line and not line.startswith('#')}


def licence_of(source: str) -> str:
    """One clause about the licence of weights from ``source``; empty where it is not known."""
    name = Path(urlsplit(source).path).stem
    if name in official_files():
        return f'licence of these weights: {LICENCES["V2" if "convnextv2" in name else "V1"]}'
    if source.startswith(('hf-hub:', 'timm:')):
        return f'licence of these weights: see the model card of {_hub_repository(source)}'
    return ''


def check_source(source: str, what: str) -> None:
    """Refuse early, before anything is downloaded, what :func:`fetch` could not find."""
    if not (
        Path(source).expanduser().is_file()
        or '://' in source
        or source.startswith(('hf-hub:', 'timm:'))
        or source in official_files()
        or _in_folder(Path(source).name)
    ):
        raise UserError(f'there is no {what} file {source}: check the path (working folder: {Path.cwd()})')


def fetch(source: str) -> Path:
    """The local file of weights.

    Args:
        source: A path, an http(s) URL, ``hf-hub:org/name``, ``timm:name``, or the short name of an official file such
            as ``convnext_base_22k_224``. The folder ``$CONVNEXT_DENSE_WEIGHTS`` is searched first, a file that exists
            at ``source`` itself apart.

    Raises:
        UserError: There is none, or it cannot be downloaded.
    """
    path = Path(source).expanduser()
    name = Path(urlsplit(source).path).name
    if path.is_file():
        return path
    if source.startswith(('hf-hub:', 'timm:')):
        return _from_hub(source)
    if source in official_files():
        source = official_files()[source]
        name = Path(urlsplit(source).path).name
    mirrored = _in_folder(name)
    if mirrored:
        return _checked(mirrored)
    if not source.startswith(('http://', 'https://')):
        raise UserError(
            f'there is no file {source}: check the path (working folder: {Path.cwd()}), or put it into a '
            f'folder and set {FOLDER_VARIABLE}=FOLDER'
        )
    return _download(source, name)


def read(source: str, trust: bool = False, mmap: bool = True) -> Any:
    """What is in a weight file, without running any of it.

    Args:
        source: As in :func:`fetch`, or a URL of a scheme that mmengine knows (``s3://``, ``open-mmlab://``).
        trust: Let a pickle run code.
        mmap: Map tensors into memory where the format allows: the file must not be written to while they are in use.

    Raises:
        UserError: The file cannot be had, is damaged, or holds more than plain data.
    """
    if '://' in source and not source.startswith(('http://', 'https://')):
        with only_safe_loading():
            try:
                return CheckpointLoader.load_checkpoint(source, map_location='cpu')
            except Exception as error:  # each scheme has a client of its own
                raise UserError(
                    f'{source} could not be read ({clause(str(error)) or type(error).__name__}): check '
                    'the address, or give a local copy'
                ) from error
    return read_file(fetch(source), trust, mmap)


def load_from_convnext_dense(filename: str, map_location: Any = None) -> Any:
    """mmengine's loader for our sources: safe, and without the Python text that ``resume`` would run.

    ``map_location`` is left to whoever copies the tensors. Not memory-mapped: an optimizer keeps what it resumes from,
    while the file may be overwritten by the next checkpoint.
    """
    source = filename.removeprefix(SCHEME)
    checkpoint = read(source, mmap=False)
    strip_code(checkpoint)
    if licence_of(source):
        print_log(f'{source}: {licence_of(source)}', logger='current')
    return checkpoint


def _in_folder(*names: str) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise UserError(f'{FOLDER_VARIABLE}={folder} is no folder: correct or unset it')
    paths = (Path(folder) / (name + ending) for name in names for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _checked(path: Path) -> Path:
    """The file itself where its sha256 begins as its name says, such as ``name-983f1562.pth``."""
    prefix = torch.hub.HASH_REGEX.search(path.name)
    if prefix and len(prefix[1]) >= 8:
        import hashlib

        digest = hashlib.sha256()
        with path.open('rb') as file:
            while block := file.read(2**20):
                digest.update(block)
        if not digest.hexdigest().startswith(prefix[1]):
            raise UserError(
                f'{path} is damaged: its sha256 begins with {digest.hexdigest()[:8]}, not with {prefix[1]} '
                'as its name says: get the file again'
            )
    return path


def _download(url: str, name: str) -> Path:
    """Into torch's own cache; in a distributed run once a machine."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    first = os.environ.get('LOCAL_RANK', '0') == '0'
    try:
        if first and not path.exists():
            prefix = torch.hub.HASH_REGEX.search(name)
            _get(url, path, prefix[1] if prefix and len(prefix[1]) >= 8 else None)
    finally:
        barrier()
    if not path.exists():  # the first process says why
        raise UserError(f'{url} was not downloaded by the first process of this machine: see its message')
    return path


def _get(url: str, path: Path, sha256: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # a network that swallows packets would never end otherwise
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except (OSError, RuntimeError) as error:  # URLError and HTTPError are OSErrors, RuntimeError is another sha256
        raise UserError(
            f'{path.name} could not be downloaded from {url} ({error}): get it on another machine, put it '
            f'into a folder and set {FOLDER_VARIABLE}=FOLDER'
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _hub_repository(source: str) -> str:
    kind, _, name = source.partition(':')
    if kind == 'hf-hub':
        return name
    if '.' not in name:
        try:
            import timm

            repository = getattr(timm.get_pretrained_cfg(name), 'hf_hub_id', None)
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f'{source} does not say which weights of that model: name them as in timm:convnext_tiny.fb_in1k'
            ) from error
        if repository:
            return repository
        raise UserError(
            f'{source} does not say which weights of that model: name them as in timm:convnext_tiny.fb_in1k'
        )
    return f'timm/{name}'


def _from_hub(source: str) -> Path:
    repository = _hub_repository(source)
    short = repository.split('/')[-1]
    mirrored = _in_folder(f'{repository}/model', f'{repository}/pytorch_model.bin', short)
    if mirrored:
        return mirrored
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise UserError(f'{source} needs huggingface_hub: pip install huggingface_hub safetensors') from error
    try:
        try:
            return Path(hub.hf_hub_download(repository, 'model.safetensors'))
        except hub.errors.EntryNotFoundError:
            return Path(hub.hf_hub_download(repository, 'pytorch_model.bin'))
    except Exception as error:  # it raises what requests, httpx and the file system raise
        raise UserError(
            f'model.safetensors of {source} could not be downloaded from https://huggingface.co/{repository} '
            f'({clause(str(error)) or type(error).__name__}): get it on another machine, put it into a folder as '
            f'{short}.safetensors and set {FOLDER_VARIABLE}=FOLDER'
        ) from error
