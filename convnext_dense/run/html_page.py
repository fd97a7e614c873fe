"""A self-contained HTML page of headings, tables and pictures: no script, no file beside it, no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from convnext_dense.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = '-'  # in a table of numbers
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 0.7em 0; } td, th { padding: 0.15em 0.8em; border-bottom: 1px solid #eee; }
th { text-align: left; background: #f6f6f6; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: 0.3em; vertical-align: top; } figcaption { font-size: 0.85em; color: #555; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: 0.7em; overflow-x: auto; }
pre.wrapped { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


class HtmlPage:
    """Parts of a page in the order in which they are added; every text is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = [f'<h1>{html.escape(title)}</h1>']

    def add_heading(self, text: str, name: str) -> None:
        """Begin a section; ``name`` is its id, for links and tests."""
        self._parts.append(f'<h2 id="{html.escape(name)}">{html.escape(text)}</h2>')

    def add_text(self, text: str) -> None:
        self._parts.append(f'<p>{html.escape(text)}</p>')

    def add_source(self, text: str, wrapped: bool = False) -> None:
        """Add text as it is, in a fixed pitch; long lines go on to the next one if ``wrapped``."""
        self._parts.append(f'<pre{" class=wrapped" if wrapped else ""}>{html.escape(text)}</pre>')

    def add_table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        lines = ['<table><tr>', *(f'<th>{html.escape(cell)}</th>' for cell in header), '</tr>']
        for row in rows:
            lines += ['<tr>', *map(_cell, row), '</tr>']
        self._parts.append(''.join([*lines, '</table>']))

    def add_figure(self, figure: Figure, caption: str) -> None:
        """Add a figure of matplotlib and close it."""
        import matplotlib.pyplot as plt

        stream = io.BytesIO()
        figure.savefig(stream, format='png', dpi=100, bbox_inches='tight')
        plt.close(figure)
        self._add_image('png', stream.getvalue(), caption)

    def add_picture(self, image: np.ndarray, caption: str, width: int = 480) -> None:
        """Add an image (height, width, 3), RGB uint8, reduced to ``width`` pixels at most."""
        if image.shape[1] > width:
            height = max(round(image.shape[0] * width / image.shape[1]), 1)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        _, content = cv2.imencode('.jpg', image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
        self._add_image('jpeg', content.tobytes(), caption)

    def _add_image(self, kind: str, content: bytes, caption: str) -> None:
        data = base64.b64encode(content).decode()
        text = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{text}" src="data:image/{kind};base64,{data}"><figcaption>{text}</figcaption></figure>'
        )

    def write(self, path: Path) -> None:
        """Write the page; a file is replaced only if it is a page of ours.

        Raises:
            UserError: Another file, or a folder, is in its place.
        """
        mark = '<meta name="generator" content="convnext-dense">'
        if path.is_dir() or (path.exists() and mark not in path.read_text(encoding='utf-8', errors='replace')[:500]):
            raise UserError(f'{path} exists and is not a page of ours: give another name, nothing was written')
        head = f'<meta charset="utf-8">{mark}<title>{html.escape(self.title)}</title><style>{STYLE}</style>'
        body = '\n'.join(self._parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n', encoding='utf-8'
        )


def _cell(value: object) -> str:
    if isinstance(value, (int, float)):
        text = f'{value:,}' if isinstance(value, int) else f'{value:.4g}'
        return f'<td class="number">{text}</td>'
    if value == NOTHING:
        return f'<td class="number">{NOTHING}</td>'
    return f'<td>{html.escape(str(value))}</td>'
