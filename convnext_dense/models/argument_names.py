"""Constructors that say which name was meant where they are given one that they do not have."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec

from convnext_dense.errors import UserError

Arguments = ParamSpec('Arguments')


def checked_names(
    aliases: Mapping[str, str] | None = None,
) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Decorate ``__init__``: an unknown name is a UserError with the nearest one; other libraries' names are accepted.

    The signature stays as it is.

    Args:
        aliases: Our name by the other one. Several ``argument.key`` together make one dict.
    """
    names = dict(aliases or {})

    def decorate(init: Callable[Arguments, None]) -> Callable[Arguments, None]:
        known = [name for name in inspect.signature(init).parameters if name != 'self']

        @functools.wraps(init)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            title = type(args[0]).__name__
            given = {*known[: len(args) - 1], *kwargs}
            parts: dict[str, dict] = {}
            for name in [name for name in kwargs if name not in known]:
                if name not in names:
                    nearest = difflib.get_close_matches(name, [*known, *names], n=1, cutoff=0.0)[0]
                    raise UserError(
                        f'{title} has no argument {name}, the nearest that it has is {nearest}: correct the name'
                    )
                ours, _, key = names[name].partition('.')
                if ours in given:
                    raise UserError(f'{title} was given both {name} and {ours}, which mean the same: give {ours} alone')
                if key:
                    parts.setdefault(ours, {})[key] = kwargs.pop(name)
                else:
                    kwargs[ours] = kwargs.pop(name)
            kwargs.update(parts)
            init(*args, **kwargs)

        checked.aliases = tuple(names)  # type: ignore[attr-defined]  # convnext_dense.run.config_keys reads it
        return checked

    return decorate
