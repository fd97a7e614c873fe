"""Which of the host toolkits (mmcv, mmdet, mmsegmentation) can be imported, and what repairs a mixed environment."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager

from convnext_dense.errors import DiagnosableError, UserError

INSTALL_MMCV = "pip install 'mmcv-lite>=2.1,<2.2' (this package provides its operators)"
# What a mixed environment says, and what repairs it.
INSTALL_PROBLEMS = (
    (
        r'MMCV==(\S+) is used but incompatible.*?(mmcv>=\S+?),? (<\S+\d)',
        rf'mmcv \1 is installed, the toolkit wants \2, \3: `pip uninstall mmcv`, then {INSTALL_MMCV}',
    ),
    (
        r'MMEngine==(\S+) is used but incompatible.*?(mmengine>=\S+?),? (<\S+\d)',
        r"mmengine \1 is installed, the toolkit wants \2, \3: pip install 'mmengine>=0.10.7,<1'",
    ),
    (r"No module named 'mmcv'", f'mmcv is not installed: {INSTALL_MMCV}'),
    (
        r"No module named '(?:mmdet|mmseg)'|(?:mmdet|mmseg|mmsegmentation) is not installed",
        "the toolkit of this config is not installed: `make install`, or pip install 'convnext-dense[openmmlab]'",
    ),
    (r"No module named 'pkg_resources'", "setuptools is too new for this toolkit: pip install 'setuptools<80'"),
    (r"No module named '(ftfy|regex)'", r'mmsegmentation needs \1: pip install \1'),
    (
        r'torchvision::nms does not exist',
        'torch and torchvision do not belong together: install the pair of constraints.txt, or `make clean install`',
    ),
    (r'Adafactor is already registered', "this mmengine is too old for this torch: pip install 'mmengine>=0.10.7'"),
)


def check_toolkit(scope: str) -> None:
    """Import mmcv with its operators and a toolkit with its models.

    Args:
        scope: Name of the toolkit's scope and module, such as 'mmdet'.

    Raises:
        DiagnosableError: One of them cannot be imported, for a reason that the user can act on.
    """
    with install_errors():
        import mmcv

        try:
            importlib.import_module('mmcv._ext')
        except ImportError as error:
            raise DiagnosableError(
                f'the compiled operators of mmcv {mmcv.__version__} do not go with this torch ({error}): '
                f'`pip uninstall -y mmcv`, then {INSTALL_MMCV}'
            ) from error
        importlib.import_module(scope)
        if importlib.util.find_spec(f'{scope}.models'):
            importlib.import_module(f'{scope}.models')


@contextmanager
def install_errors() -> Iterator[None]:
    """Turn the errors of a mixed environment into an error that says what repairs it.

    Raises:
        DiagnosableError: Something inside has raised one of :data:`INSTALL_PROBLEMS`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the toolkits check versions by assert
        for pattern, repair in INSTALL_PROBLEMS:
            found = re.search(pattern, str(error), re.DOTALL)
            if found:
                raise DiagnosableError(found.expand(repair)) from error
        raise
