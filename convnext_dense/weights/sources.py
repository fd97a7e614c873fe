"""Where weight files come from: paths, URLs, hubs and short names."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from mmengine.dist import barrier
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from convnext_dense.archs import TIMM_MODELS
from convnext_dense.errors import DiagnosableError, UserError
from convnext_dense.weights.known import (
    LICENCES,
    STATISTICS,
    Known,
    Statistics,
    default_tag,
    known_weights,
    official_files,
)
from convnext_dense.weights.safe_reading import clause, only_safe_loading, read_file, safetensors_metadata, strip_code

FOLDER_VARIABLE = 'CONVNEXT_DENSE_WEIGHTS'

# In the repository of a model, the first that is there: of timm and transformers, and of open_clip.
HUB_FILES = ('model.safetensors', 'pytorch_model.bin', 'open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
HUBS = ('hf-hub:', 'timm:')

ENDINGS = ('', '.pth', '.pt', '.safetensors')

# Of what is known about weights, in files that this package writes.
METADATA_KEY = 'convnext_dense'

TIMEOUT = 30  # seconds without an answer

# A path or URL behind this scheme is read by this module wherever mmengine reads checkpoints.
SCHEME = 'convnext-dense:'

SHORT_NAME = r'(?:(?:cascade_)?mask_rcnn_|upernet_)?convnext(?:v2)?_\w+$'


def facts_of(source: str, checkpoint: Any = None) -> Known:
    """Collect what is known about weights, by their name or by what the file says of itself.

    Args:
        source: As in :func:`fetch`.
        checkpoint: What :func:`read` made of it.
    """
    known = known_weights(source)
    if known == Known() and '://' not in source.removeprefix('https://').removeprefix('http://'):
        known = _facts_in_file(source, checkpoint)
    if not known.licence and source.startswith(HUBS):
        known = replace(known, licence=f'see the model card of {_hub_repository(source)}')
    return known


def _facts_in_file(source: str, checkpoint: Any) -> Known:
    """What ``tools/convert_checkpoint.py`` or timm wrote beside the tensors."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    written = meta.get(METADATA_KEY) if isinstance(meta, Mapping) else None
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == '.safetensors':
        written = safetensors_metadata(path).get(METADATA_KEY, written)
    if isinstance(written, str):
        return _known_from_json(written)
    config = path.parent / 'config.json'
    if path.is_file() and path.stem in ('model', 'pytorch_model') and config.is_file():
        return _known_from_timm(config)
    return Known()


def known_as_json(known: Known) -> str:
    """Write facts as :func:`facts_of` reads them from a file."""
    statistics = known.statistics
    values = dict(licence=known.licence, arguments=known.arguments)
    if statistics:
        values.update(statistics=dict(name=statistics.name, mean=statistics.mean, std=statistics.std))
    return json.dumps(values)


def _known_from_json(text: str) -> Known:
    try:
        values = json.loads(text)
        statistics = values.get('statistics')
        if statistics:
            statistics = Statistics(statistics['name'], tuple(statistics['mean']), tuple(statistics['std']))
        return Known(statistics, values.get('licence', ''), values.get('arguments'))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Known()  # not ours


def _known_from_timm(config: Path) -> Known:
    """Of the ``config.json`` that timm puts beside its weights."""
    try:
        values = json.loads(config.read_text())
        pretrained = values['pretrained_cfg']
        named = known_weights(f'timm:{values["architecture"]}.{pretrained.get("tag", "")}')
        mean, std = ([255 * value for value in pretrained[key]] for key in ('mean', 'std'))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Known()
    if named.statistics and named.statistics.agrees(mean, std):
        return named
    arguments = TIMM_MODELS.get(values['architecture'])
    statistics = next((found for found in STATISTICS.values() if found.agrees(mean, std)), None)
    statistics = statistics or Statistics('those of its config.json', tuple(mean), tuple(std))
    return Known(statistics, LICENCES.get(pretrained.get('license') or '', ''), arguments)


def check_source(source: str, what: str) -> None:
    """Refuse early, before anything is downloaded, what :func:`fetch` could not find."""
    if not (
        Path(source).expanduser().is_file()
        or '://' in source
        or source.startswith(HUBS)
        or source in official_files()
        or _in_folder(Path(source).name)
    ):
        raise UserError(f'there is no {what} file {source}: check the path (working folder: {Path.cwd()})')


def local_file(source: str) -> Path | None:
    """Return the file of weights if it is on this machine, given by its path or in the folder of weights."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    return _in_folder(Path(urlsplit(official_files().get(source, source)).path).name)


def fetch(source: str) -> Path:
    """The local file of weights.

    Args:
        source: A path, an http(s) URL, ``hf-hub:org/name``, ``timm:name``, or the short name of an official file such
            as ``convnext_base_22k_224``. The folder ``$CONVNEXT_DENSE_WEIGHTS`` is searched first, a file that exists
            at ``source`` itself apart.

    Raises:
        UserError: There is none, or it cannot be downloaded.
    """
    if source.startswith(HUBS) and not Path(source).expanduser().is_file():
        return _from_hub(source)
    place = _file_or_url(source)
    return place if isinstance(place, Path) else _download(place)


def locate(source: str) -> Path | str | None:
    """Where :func:`fetch` would take weights from; nothing is downloaded.

    Args:
        source: As in :func:`read`.

    Returns:
        The local file, downloaded ones too, or the URL to download; None for the schemes of mmengine.

    Raises:
        UserError: There is no such file, or a package is missing.
    """
    if source.startswith(HUBS) and not Path(source).expanduser().is_file():
        return _file_or_url_in_hub(source)
    if '://' in source and not source.startswith(('http://', 'https://')):
        return None
    place = _file_or_url(source)
    if isinstance(place, str) and _downloaded(place).exists():
        return _downloaded(place)
    return place


def _file_or_url(source: str) -> Path | str:
    """The file of weights outside the hubs, or where to download it from."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    url = official_files().get(source, source)
    mirrored = _in_folder(Path(urlsplit(url).path).name)
    if mirrored:
        return _checked(mirrored)
    if not url.startswith(('http://', 'https://')):
        raise UserError(
            f'there is no file {source}: check the path (working folder: {Path.cwd()}), or put it into a '
            f'folder and set {FOLDER_VARIABLE}=FOLDER'
        )
    return url


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
    check_structure(checkpoint, source)
    strip_code(checkpoint)
    clauses = facts_of(source, checkpoint).clauses()
    if clauses:
        print_log(f'{source}: {"; ".join(clauses)}', logger='current')
    return checkpoint


def check_structure(checkpoint: Any, source: str) -> None:
    """Raise UserError unless a checkpoint has the structure of a model's: tensors by names, and facts in a dict."""
    problem = None
    if not isinstance(checkpoint, Mapping):
        problem = f'it holds a {type(checkpoint).__name__}'
    else:
        state = checkpoint.get('state_dict', checkpoint)
        if not isinstance(state, Mapping):
            problem = f'its state_dict is a {type(state).__name__}'
        elif not all(isinstance(name, str) for name in state):
            odd = next(name for name in state if not isinstance(name, str))
            problem = f'it has the name {odd!r}, which is a {type(odd).__name__}'
        elif not isinstance(checkpoint.get('meta') or {}, Mapping):
            problem = f'its meta is a {type(checkpoint["meta"]).__name__}'
    if problem:
        raise UserError(f'{source} is not a checkpoint of a model, {problem}: give a file of tensors by their names')


def _in_folder(*names: str) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise DiagnosableError(f'{FOLDER_VARIABLE}={folder} is no folder: correct or unset it')
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


def _downloaded(url: str) -> Path:
    """The file of a URL in torch's own cache."""
    return Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlsplit(url).path).name


def _download(url: str) -> Path:
    """Into torch's own cache; in a distributed run once a machine."""
    path = _downloaded(url)
    first = os.environ.get('LOCAL_RANK', '0') == '0'
    try:
        if first and not path.exists():
            prefix = torch.hub.HASH_REGEX.search(path.name)
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
        raise DiagnosableError(
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
        tag = default_tag(name)
        if tag is None:
            raise UserError(
                f'{source} does not say which weights of that model: name them as in timm:convnext_tiny.fb_in1k'
            )
        name = tag
    return f'timm/{name}'


def _from_hub(source: str) -> Path:
    mirrored = _mirrored_of_hub(source)
    if mirrored:
        return mirrored
    repository = _hub_repository(source)
    hub = _hub_package(source)
    try:
        *first_files, last_file = HUB_FILES
        for file in first_files:
            with suppress(hub.errors.EntryNotFoundError):
                return Path(hub.hf_hub_download(repository, file))
        return Path(hub.hf_hub_download(repository, last_file))
    except Exception as error:  # it raises what requests, httpx and the file system raise
        short = repository.split('/')[-1]
        raise DiagnosableError(
            f'the weights of {source} could not be downloaded from https://huggingface.co/{repository} '
            f'({clause(str(error)) or type(error).__name__}): get it on another machine, put it into a folder as '
            f'{short}.safetensors and set {FOLDER_VARIABLE}=FOLDER'
        ) from error


def _file_or_url_in_hub(source: str) -> Path | str:
    """The file of weights of a hub, downloaded ones too, or the page of its repository."""
    mirrored = _mirrored_of_hub(source)
    if mirrored:
        return mirrored
    repository = _hub_repository(source)
    hub = _hub_package(source)
    for name in HUB_FILES:
        cached = hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    return f'https://huggingface.co/{repository}'


def _mirrored_of_hub(source: str) -> Path | None:
    repository = _hub_repository(source)
    files = [f'{repository}/{file}' for file in HUB_FILES]
    return _in_folder(f'{repository}/model', *files, repository.split('/')[-1])


def _hub_package(source: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f'{source} needs huggingface_hub: pip install huggingface_hub safetensors') from error
    return huggingface_hub
