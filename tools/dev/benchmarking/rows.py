"""The rows of a comparison: our ConvNeXt under several options, and its peers."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from benchmarking.options import Options
from benchmarking.peers import PEERS, SESSIONS
from convnext_dense import ConvNeXt
from convnext_dense.errors import UserError

KERNELS = 'CONVNEXT_DENSE_KERNELS'
COMPILED_PEERS = ('official', 'timm')


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    Attributes:
        name: As in the tables and in ``--only``.
        peer: Whose code it is: ``ours``, a name of ``PEERS`` or of ``SESSIONS``.
        dtype: 'fp32', 'bf16' or 'fp16'.
        layout: Memory layout of a peer: 'contiguous' or 'channels_last'.
        arguments: Extra arguments of our ConvNeXt.
        environment: Variables (None: not set) while our ConvNeXt is built and runs.
        prepared: Whether our ConvNeXt is prepared for inference, as our tools do.
    """

    name: str
    peer: str
    dtype: str
    layout: str = 'contiguous'
    compiled: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)
    prepared: bool = True

    @property
    def key(self) -> str:
        return f'{self.name} {self.dtype}'


def choose_rows(options: Options) -> list[Row]:
    """Return every row that the options ask for, whether its library is installed or not.

    Raises:
        UserError: ``--only`` names an unknown row, or ``--ours`` is malformed.
    """
    rows = []
    for dtype in options.dtype:
        rows += _rows_of_ours(options, dtype)
        rows += _rows_of_peers(options, dtype)
        if options.compile:
            rows += _compiled([row for row in rows if row.dtype == dtype])
        if options.mode == 'inference' and not options.config:
            for runtime, (_, dtypes) in SESSIONS.items():
                if dtype in dtypes:
                    rows.append(Row(runtime, runtime, dtype))
    return rows if options.only is None else _only(rows, options.only)


def _rows_of_ours(options: Options, dtype: str) -> list[Row]:
    ours = Row('ours', 'ours', dtype, environment={KERNELS: None})
    rows = [ours, replace(ours, name='ours eager', environment={KERNELS: 'eager'})]
    if options.train and 'memory' in inspect.signature(ConvNeXt).parameters:
        for memory in ('lean', 'checkpoint'):
            rows.append(replace(ours, name=f'ours {memory}', arguments={'memory': memory}))
    if not options.train:
        rows.append(replace(ours, name='ours unprepared', prepared=False))
    for text in options.ours:
        name, arguments, variables = parse_variant(text)
        environment = {**ours.environment, **variables}
        rows.append(replace(ours, name=f'ours {name}', arguments=arguments, environment=environment))
    return rows


def _rows_of_peers(options: Options, dtype: str) -> list[Row]:
    rows = []
    for peer, (_, best_layouts) in PEERS.items():
        layouts: tuple[str, ...] = (options.layout,)
        if options.layout == 'auto':
            layouts = best_layouts
        elif options.layout == 'both':
            layouts = ('contiguous', 'channels_last')
        for layout in layouts:
            name = f'{peer} channels_last' if layout == 'channels_last' else peer
            rows.append(Row(name, peer, dtype, layout))
    return rows


def _compiled(rows: list[Row]) -> list[Row]:
    chosen = [row for row in rows if row.name == 'ours' or row.peer in COMPILED_PEERS]
    return [replace(row, name=f'{row.name} compiled', compiled=True) for row in chosen]


def _only(rows: list[Row], wanted: list[str]) -> list[Row]:
    """Return the rows with these names, and those of these peers."""
    names = sorted({name for row in rows for name in (row.name, row.peer)})
    for name in wanted:
        if name not in names:
            raise UserError(f'--only {name!r}: there is no such row here, choose from {", ".join(names)}')
    chosen = []
    for row in rows:
        # The name of a peer stands for all of its rows, but `ours` is a row as well as a peer.
        by_peer = row.peer in wanted and row.peer != 'ours'
        if row.name in wanted or by_peer:
            chosen.append(row)
    return chosen


def parse_variant(text: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Parse ``NAME:KEY=VALUE,...``.

    Returns:
        Name, arguments, and environment variables (the keys in capitals).

    Raises:
        UserError: The text has another form.
    """
    parsed = re.fullmatch(r'([^:]+):(\w+=[^,=]+(?:,\w+=[^,=]+)*)', text)
    if not parsed:
        raise UserError(
            f'--ours {text}: write NAME:KEY=VALUE,KEY=VALUE, as in checkpoint:with_cp=True; keys in '
            'capitals are environment variables'
        )
    arguments, variables = {}, {}
    for pair in parsed[2].split(','):
        key, value = pair.split('=')
        if key.isupper():
            variables[key] = value
        else:
            arguments[key] = yaml.safe_load(value)
    return parsed[1], arguments, variables


@contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for the duration of a block; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
