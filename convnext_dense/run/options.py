"""What the tools share: the config that their options name, sizes of images, and how errors end a program."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pickle
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from convnext_dense.engine.scope import SCOPE
from convnext_dense.errors import DiagnosableError, UserError
from convnext_dense.outputs import is_write_failure, write_failure
from convnext_dense.run.config_keys import check_keys
from convnext_dense.toolkits import install_errors

DATA_VARIABLE = 'CONVNEXT_DENSE_DATA'


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the program with one sentence and status 1 if the user can act; other errors keep their traceback.

    The user can act on a UserError, a pickle that is refused, a missing package and a place that cannot be
    written.
    """
    try:
        yield
    except DiagnosableError as error:
        sys.exit(f'error: {error}; `convnext-dense doctor CONFIG` checks this and what else a training needs')
    except UserError as error:
        sys.exit(f'error: {error}')
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else 'not a checkpoint'
        sys.exit(
            f'error: the checkpoint cannot be read safely, it is damaged or holds more than tensors ({reason}): '
            'give another file, or save this one again as a plain state dict'
        )
    except ModuleNotFoundError as error:
        package = (error.name or '').split('.')[0]
        if not package or package == 'convnext_dense':
            raise
        sys.exit(f'error: the package {package} is needed here and not installed: pip install {package}')
    except PermissionError as error:  # of a file to read or to write
        sys.exit(f'error: {error.filename or "a file"}: {error.strerror}: permit it, or give another place')
    except Exception as error:
        if not is_write_failure(error):
            raise
        sys.exit(f'error: {write_failure(getattr(error, "filename", None) or "a file", error)}')


def read_config(path: str, cfg_options: Sequence[str] = ()) -> Config:
    """Read a config and change it as the option ``--cfg-options`` says.

    Args:
        path: A config file, or ``PACKAGE::PATH`` for one that an installed package brings, such as
            ``convnext_dense::mask_rcnn/convnext_t_3x_coco.py``.
        cfg_options: Changes as ``KEY=VALUE``, with the values that mmengine's tools accept. ``data_root=FOLDER`` moves
            every path below the config's own ``data_root``. A key has to be known, see
            ``convnext_dense.run.config_keys.check_keys``; ``+KEY=VALUE`` sets any key.

    Raises:
        UserError: There is no such file, a toolkit that it inherits from is not installed, it needs an environment
            variable that is not set, or a change is malformed or of an unknown key.
    """
    path = _file_of_package(path) if '::' in path else path
    check_file(path, 'config')
    changes = _parse_changes([text.removeprefix('+') for text in cfg_options])
    forced = {text.removeprefix('+').split('=')[0] for text in cfg_options if text.startswith('+')}
    with install_errors(), _data_folder_as_token() as tokens:
        try:
            cfg = Config.fromfile(path)
        except KeyError as error:
            if 'os.environ' not in str(error):
                raise
            raise UserError(f'the config {path} needs an environment variable: {error.args[0]}') from error
    if tokens:
        cfg._cfg_dict.update(_with_text(cfg._cfg_dict.to_dict(), tokens))
    for line in check_keys(cfg, [key for key in changes if key not in forced]):
        print(line, flush=True)
    if 'data_root' in changes and 'data_root' in cfg:
        old_root = cfg.data_root.rstrip('/')
        new_root = str(changes.pop('data_root')).rstrip('/')
        # cfg._cfg_dict: a Config does not let its own dict be exchanged.
        cfg.merge_from_dict(_moved(cfg._cfg_dict.to_dict(), old_root, new_root))
    try:
        cfg.merge_from_dict(changes)
    except (TypeError, KeyError) as error:  # a part below a value, a position that a list has not
        reason = ' '.join(str(error).split())[:150]
        raise UserError(f'--cfg-options do not fit the config ({reason}): correct their keys') from error
    # What a config takes from a base `convnext_dense::...` belongs to the toolkit of the config.
    for part in nested_dicts(cfg._cfg_dict):
        if part.get('_scope_') == SCOPE:
            del part['_scope_']
    return cfg


@contextmanager
def _data_folder_as_token() -> Iterator[dict[str, str]]:
    """Let a folder in the environment have any name: mmengine puts the text into the Python source of a config.

    An empty variable is as one that is not set.

    Yields:
        The token that stands for the folder inside, and the folder; empty if the text is harmless.
    """
    text = os.environ.get(DATA_VARIABLE)
    tokens = {}
    try:
        if text == '':
            del os.environ[DATA_VARIABLE]
        elif text is not None and not re.fullmatch(r"[^\\'\"{}\x00-\x1f]*", text):
            tokens['convnext-dense-data-folder'] = text
            os.environ[DATA_VARIABLE] = 'convnext-dense-data-folder'
        yield tokens
    finally:
        if text is not None:
            os.environ[DATA_VARIABLE] = text


def _with_text(value: Any, tokens: dict[str, str]) -> Any:
    """Return ``value`` with every token in its texts replaced."""
    if isinstance(value, dict):
        return {key: _with_text(item, tokens) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_text(item, tokens) for item in value)
    if isinstance(value, str):
        for token, text in tokens.items():
            value = value.replace(token, text)
    return value


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
        raise UserError(f'{text!r} is not an image size: write HEIGHTxWIDTH in pixels, such as 800x1280')
    return int(found[1]), int(found[2])
