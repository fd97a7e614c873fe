"""What a check finds, and how it is collected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """Something about a config or a data set that a user should know.

    Attributes:
        source: The file that it was found in, or the key of the config.
        what: What was found, and for a harmless finding also how it is treated.
        fix: What to change, with the key of the config where there is one.
        records: The records of the file that are concerned, in words; empty if it is the file as a whole.
        fatal: Training or testing would fail or be wrong; otherwise the finding is only reported.
    """

    source: str
    what: str
    fix: str = ''
    records: tuple[str, ...] = ()
    fatal: bool = True

    def sentence(self) -> str:
        """Return the finding with its first record."""
        text = f'{self.source}: '
        if self.records:
            more = f' (and {len(self.records) - 1} more)' if len(self.records) > 1 else ''
            text += f'{self.records[0]}{more}: '
        return f'{text}{self.what}' + (f'; {self.fix}' if self.fix else '')


class FindingCollector:
    """Collect the findings of one file; records with the same problem become one finding.

    Args:
        source: The file, or the key of the config.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._records: dict[tuple[str, str, bool], list[str]] = {}

    def add(self, what: str, fix: str = '', record: str = '', *, fatal: bool = True) -> None:
        """Add one record, or the file as a whole if ``record`` is empty; see :class:`Finding`."""
        records = self._records.setdefault((what, fix, fatal), [])
        if record:
            records.append(record)

    def findings(self) -> list[Finding]:
        """Return what was collected, in the order of the first record of each."""
        return [
            Finding(self.source, what, fix, tuple(records), fatal)
            for (what, fix, fatal), records in self._records.items()
        ]
