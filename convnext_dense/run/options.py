"""What the tools share: the config that their options name, sizes of images, and how errors end a program."""

from __future__ import annotations

import argparse
import importlib.util
import pickle
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from convnext_dense.errors import UserError
from convnext_dense.toolkits import install_errors

DATA_VARIABLE = 'CONVNEXT_DENSE_DATA'


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the program with one sentence and status 1 if the user can act; other errors keep their traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f'error: {error}')
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else 'not a checkpoint'
        sys.exit(
            f'error: the checkpoint cannot be read safely, it is damaged or holds more than tensors ({reason}): '
            'give another file, or save this one again as a plain state dict'
        )


def read_config(path: str, cfg_options: Sequence[str] = ()) -> Config:
    """Read a config and change it as the option ``--cfg-options`` says.

    Args:
        path: A config file, or ``PACKAGE::PATH`` for one that an installed package brings, such as
            ``convnext_dense::mask_rcnn/convnext_t_3x_coco.py``.
        cfg_options: Changes as ``KEY=VALUE``, with the values that mmengine's tools accept. ``data_root=FOLDER`` moves
            every path below the config's own ``data_root``.

    Raises:
        UserError: There is no such file, a toolkit that it inherits from is not installed, or a change is malformed.
    """
    path = _file_of_package(path) if '::' in path else path
    check_file(path, 'config')
    changes = _parse_changes(cfg_options)
    with install_errors():
        cfg = Config.fromfile(path)
    if 'data_root' in changes and 'data_root' in cfg:
        old_root = cfg.data_root.rstrip('/')
        new_root = str(changes.pop('data_root')).rstrip('/')
        # cfg._cfg_dict: a Config does not let its own dict be exchanged.
        cfg.merge_from_dict(_moved(cfg._cfg_dict.to_dict(), old_root, new_root))
    cfg.merge_from_dict(changes)
    return cfg


def _file_of_package(name: str) -> str:
    """Return the file of ``PACKAGE::PATH``."""
    package, _, path = name.partition('::')
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(f'{name} is a config of the package {package!r}, which is not installed: install it')
    return str(Path(found.submodule_search_locations[0]) / '.mim' / 'configs' / path)


def _parse_changes(cfg_options: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` texts as mmengine's own ``--cfg-options`` does."""
    for text in cfg_options:
        if '=' not in text:
            raise UserError(f'--cfg-options {text}: write KEY=VALUE, as in model.backbone.arch=base')
    parsed = argparse.Namespace()
    action = DictAction(option_strings=['--cfg-options'], dest='changes')
    try:
        action(argparse.ArgumentParser(), parsed, list(cfg_options))
    except AssertionError as error:  # brackets that do not match
        raise UserError(f'--cfg-options: {error}: close every bracket') from error
    return parsed.changes


def _moved(value: Any, old_root: str, new_root: str) -> Any:
    """Return ``value`` with every path below the folder ``old_root`` moved to ``new_root``."""
    if isinstance(value, dict):
        return {key: _moved(item, old_root, new_root) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, old_root, new_root) for item in value)
    if isinstance(value, str) and (value == old_root or value.startswith(old_root + '/')):
        return new_root + value[len(old_root) :]
    return value


def nested_dicts(value: Any) -> Iterator[dict]:
    """Yield every dict inside a part of a config, outer ones first."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from nested_dicts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from nested_dicts(item)


def check_file(path: str, what: str) -> None:
    """Raise UserError if there is no file ``path``; ``what`` names its kind in the message."""
    if '://' not in path and not Path(path).is_file():
        raise UserError(f'there is no {what} file {path}: check the path (working folder: {Path.cwd()})')


def height_and_width(text: str) -> tuple[int, int]:
    """Parse the size of an image as every tool writes it: '800x1280' -> (800, 1280).

    Raises:
        UserError: The text has another form.
    """
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not found:
        raise UserError(f'{text!r} is no size of an image: write HEIGHTxWIDTH in pixels, such as 800x1280')
    return int(found[1]), int(found[2])
