"""Let Python find a module ``mmcv._ext`` where mmcv has no compiled one.

Nothing here imports torch, torchvision or mmcv before somebody asks for the module.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from convnext_dense.distributions import MMCV_DISTRIBUTIONS, installed

EXTENSION = 'mmcv._ext'


class ExtensionLoader(Loader):
    """Fill the module ``mmcv._ext`` with our operators."""

    def exec_module(self, module: ModuleType) -> None:
        from convnext_dense.mmcv_ops.extension import OPERATORS, left_out

        vars(module).update(OPERATORS)
        # A name that is not there: mmcv asserts that it is, and calls it only when somebody uses that operator.
        vars(module)['__getattr__'] = left_out


class ExtensionFinder(MetaPathFinder):
    """Know the module ``mmcv._ext`` only; stand behind the finders that know a compiled one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        return ModuleSpec(fullname, ExtensionLoader(), origin=__package__)


def install() -> None:
    """Provide ``mmcv._ext`` from now on, unless mmcv has a compiled one, which is found first.

    Call this before ``mmcv.ops`` is imported. A second call changes nothing.
    """
    for finder in sys.meta_path:
        if isinstance(finder, ExtensionFinder):
            return
    sys.meta_path.append(ExtensionFinder())


def operators_in_use() -> str:
    """Say in one line which operators ``mmcv.ops`` runs.

    Returns:
        A line that begins with ``compiled:``, ``provided:`` (those of this package) or ``none:``.
    """
    try:
        spec = importlib.util.find_spec(EXTENSION)
    except ModuleNotFoundError as error:
        if error.name != 'mmcv':
            raise
        return 'none: mmcv is not installed'
    mmcv = ', '.join(f'{name} {version}' for name, version in installed(MMCV_DISTRIBUTIONS).items()) or 'mmcv'
    if spec is None:
        return f'none: {mmcv} has no compiled operators, and convnext_dense.mmcv_ops.install() was not called'
    if not isinstance(spec.loader, ExtensionLoader):
        return f'compiled: those of {mmcv}'
    peers = installed(('torchvision', 'torch'))
    if 'torchvision' not in peers:
        return f'provided: {mmcv} with operators of torch alone, as torchvision is not installed'
    return f'provided: {mmcv} with operators of torchvision {peers["torchvision"]} and torch {peers.get("torch", "")}'


def has_compiled_operators() -> bool:
    """Return whether mmcv is installed with operators of its own."""
    if importlib.util.find_spec('mmcv') is None:
        return False
    spec = importlib.util.find_spec(EXTENSION)
    return spec is not None and not isinstance(spec.loader, ExtensionLoader)


def mixed_distributions() -> str | None:
    """Say in one sentence what is wrong where several distributions share the folder ``mmcv``, else give None.

    pip does not refuse this. The one that was installed last has overwritten files of the other, and whichever is
    removed first takes the files of both along.
    """
    found = installed(MMCV_DISTRIBUTIONS)
    if len(found) < 2:
        return None
    listed = ' and '.join(f'{name} {version}' for name, version in found.items())
    return (
        f'{listed} are installed in one environment and overwrite each other: '
        f'`pip uninstall -y {" ".join(found)}`, then install one of them'
    )
