"""Read weight files without running anything in them."""

from __future__ import annotations

import argparse
import json
import mmap as memory_map
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from convnext_dense.errors import UserError


def allow_mmengine_checkpoints() -> None:
    """Let torch's safe loading (``weights_only=True``) read what mmengine's runner stores: its log history.

    mmengine 0.10.7 cannot resume on torch >= 2.6 without it. ``argparse.Namespace`` is how the official code (as many
    others) stores its options. Nothing on this list can run code of the file.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):  # torch < 2.4 has no safe loading to extend
        return
    allowed: list[Any] = [
        argparse.Namespace,
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
    ]
    for kind in (bool, np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, str):
        allowed.append(type(np.dtype(kind)))
    reconstruct_array = np.empty(0).__reduce__()[0]
    reconstruct_scalar = np.float64(0).__reduce__()[0]
    for module in ('core', '_core'):  # numpy 2 renamed the module; files name the one or the other
        allowed.append((reconstruct_array, f'numpy.{module}.multiarray._reconstruct'))
        allowed.append((reconstruct_scalar, f'numpy.{module}.multiarray.scalar'))
    torch.serialization.add_safe_globals(allowed)


def _history_method(owner: type, name: str) -> Any:
    """Stands for ``getattr`` in a checkpoint, where mmengine's log names its statistics by it."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'the attribute {name!r} of {owner!r} is not part of a checkpoint')


TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')  # begins a file of torch < 1.6


def read_file(path: Path, trust: bool = False, mmap: bool = True, verify: bool = True) -> Any:
    """As :func:`read`, of a local file; without ``verify``, changed bits in its tensors are not noticed."""
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(512)
    begin = head.lstrip()[:60]
    if not head:
        raise UserError(f'{path} is empty: get the file again')
    if begin.startswith(b'<'):
        raise UserError(
            f'{path} is a web page, not weights (it begins with {begin[:20].decode(errors="replace")!r}): '
            'get the file again, by the address of the file itself'
        )
    if begin.startswith(b'version https://git-lfs'):
        raise UserError(f'{path} is a Git LFS pointer, not weights: run `git lfs pull` where it comes from')
    if path.suffix == '.safetensors' or head[8:9] == b'{':
        return _read_safetensors(path)
    is_zip = head.startswith(b'PK\x03\x04')
    if is_zip:
        _check_zip(path, size, verify)
    refusal = (
        '{} holds code, not only tensors ({}), which was not executed: give another file, or, if you trust its '
        'author, convert it by tools/convert_checkpoint.py --trust-checkpoint'
    )
    # What pickle writes without torch; detectron2 keeps numpy arrays so.
    is_plain_pickle = head.startswith(b'\x80') and head[4:14] != TORCH_MAGIC
    if is_plain_pickle and not trust:
        names = called_names(path.read_bytes())
        if names:
            raise UserError(refusal.format(path, f'a pickle that calls {names}'))
        raise UserError(
            f'{path} is a pickle of Python objects, which may hold code and was not executed: give another file, or, '
            'if you trust its author, convert it by tools/convert_checkpoint.py --trust-checkpoint'
        )
    try:
        if is_plain_pickle:
            return pickle.loads(path.read_bytes())
        allow_mmengine_checkpoints()  # again: onedl-mmengine's own loader takes some of it back
        # The form of torch < 1.6 cannot be memory-mapped.
        return torch.load(str(path), map_location='cpu', weights_only=not trust, mmap=mmap and is_zip)
    except Exception as error:  # a file from elsewhere can fail in every way
        text = str(error).split('WeightsUnpickler error: ')[-1]
        code = re.match(r'(?:Unsupported global|Unsupported class|Trying to|Can only)[^\n]*', text)
        names = _called_names_in(path)
        if (code or names) and not trust:
            reason = f'a pickle that calls {names}' if names else clause(code[0] if code else text)
            raise UserError(refusal.format(path, reason)) from error
        raise UserError(
            f'{path} is damaged or not a checkpoint ({clause(text) or type(error).__name__}): get the file again'
        ) from error


# What files of tensors name anyway.
HARMLESS = re.compile(
    r'collections\.OrderedDict|torch\._utils\.\w+|torch\.(\w+(Storage|Tensor)|device|Size|\w+\d+)|numpy\..*|_codecs\.encode'
    r'|argparse\.Namespace|mmengine\.logging\.history_buffer\.HistoryBuffer|(builtins|__builtin__)\.(getattr|set)'
)


def called_names(content: bytes, limit: int = 3) -> str:
    """Return the classes and functions that a pickle would call, such as ``posix.system``, without running it."""
    names: list[str] = []
    texts: list[str | None] = []  # pushed one after the other; None for anything else
    memo: dict[int, str | None] = {}
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in ('GLOBAL', 'INST'):
                names.append(str(argument).replace(' ', '.'))
            elif operation.name == 'STACK_GLOBAL':
                names.append('.'.join(str(text) for text in texts[-2:]))
            if operation.name == 'MEMOIZE':
                memo[len(memo)] = texts[-1]
            elif 'PUT' in operation.name:
                memo[argument or 0] = texts[-1]
            elif 'GET' in operation.name:
                texts.append(memo.get(argument or 0))
            else:
                texts.append(argument if isinstance(argument, str) and 'UNICODE' in operation.name else None)
    except Exception:  # a pickle from elsewhere can be malformed in every way
        pass
    found = [name for name in dict.fromkeys(names) if not HARMLESS.fullmatch(name)]
    return ', '.join(clause(name) for name in found[:limit]) + (', ...' if len(found) > limit else '')


def _called_names_in(path: Path) -> str:
    """Return :func:`called_names` of the pickle in a file of torch; empty if the file is too damaged to tell."""
    try:
        return called_names(_pickle_in(path))
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error):
        return ''


def _pickle_in(path: Path) -> bytes:
    """Return the pickles in a file of torch: of a zip the entry ``data.pkl``, else all, one behind the other."""
    if not zipfile.is_zipfile(path):
        content = path.read_bytes()
        if content[4:14] != TORCH_MAGIC and content[2:14].find(TORCH_MAGIC) < 0:
            return content
        begin = 0
        for _ in range(3):  # magic number, version, machine
            begin = content.find(b'.', begin) + 1
        return content[begin:]
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith('data.pkl')), None)
        return archive.read(name) if name else b''


@contextmanager
def only_safe_loading() -> Iterator[None]:
    """Make every ``torch.load`` a safe one: onedl-mmengine otherwise loads again unsafely what safe loading refused."""
    names = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = '1'
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def clause(text: str) -> str:
    return ' '.join(text.split())[:150].rstrip('.: ')


def _check_zip(path: Path, size: int, verify: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            expanded = sum(entry.file_size for entry in entries)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise UserError(f'{path} ends early or is damaged ({clause(str(error))}): get the file again') from error
    if expanded > 2 * size + 2**20:  # torch never compresses
        raise UserError(
            f'{path} would unpack to {expanded / 2**20:,.0f} MiB from {size / 2**20:,.1f}, as no '
            'checkpoint does: give another file'
        )
    if verify:
        damaged = damaged_entries(path, entries)
        if damaged:
            raise UserError(
                f'{path} is damaged, its content is not what was written (CRC-32 of {", ".join(damaged[:3])}'
                f'{", ..." if len(damaged) > 3 else ""}): get the file again, or take an earlier checkpoint'
            )


def damaged_entries(path: Path, entries: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the names of entries whose bytes differ from their CRC-32, which torch writes and does not read.

    Compressed entries, which torch does not write, are passed over. So are files without any checksum
    (``torch.serialization.set_crc32_options(False)``).
    """
    if not any(entry.CRC for entry in entries):
        return []
    with path.open('rb') as file, memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_READ) as content:
        view = memoryview(content)

        def is_damaged(entry: zipfile.ZipInfo) -> bool:
            # The local header has 30 bytes, and then a name and padding of their own lengths.
            header = view[entry.header_offset : entry.header_offset + 30]
            name_length, extra_length = struct.unpack('<HH', header[26:30])
            begin = entry.header_offset + 30 + name_length + extra_length
            return zlib.crc32(view[begin : begin + entry.file_size]) != entry.CRC

        try:
            stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # zlib lets other threads run meanwhile
                return [entry.filename for entry, bad in zip(stored, pool.map(is_damaged, stored)) if bad]
        except struct.error:  # an offset behind the end of the file
            return ['the list of contents']
        finally:
            view.release()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f'reading {path} needs safetensors: pip install safetensors') from error
    try:
        return load_file(path)  # memory-mapped
    except Exception as error:  # a file from elsewhere can fail in every way
        raise UserError(
            f'{path} ends early or is not a safetensors file ({clause(str(error))}): get the file again'
        ) from error


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return what the header of a safetensors file says beside the tensors; nothing if it cannot be read."""
    with path.open('rb') as file:
        size = int.from_bytes(file.read(8), 'little')
        if size > path.stat().st_size:
            return {}
        try:
            metadata = json.loads(file.read(size)).get('__metadata__')
        except (ValueError, AttributeError):
            return {}
    return metadata if isinstance(metadata, dict) else {}


def strip_code(checkpoint: Any) -> None:
    """Take the Python text out of a checkpoint's ``meta``."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    if isinstance(meta, dict):
        for key in ('config', 'cfg'):
            meta.pop(key, None)
