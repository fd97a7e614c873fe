"""Reports of measurements: lines on the terminal, Markdown, and the plot of scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarking.reference import tolerances

# Columns of the table: the figure of a row, and how it is written.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    'min ms': ('min', lambda value: f'{value * 1000:.1f}'),
    'median ms': ('median', lambda value: f'{value * 1000:.1f}'),
    'spread': ('spread', lambda value: f'{value:.0%}'),
    'images/s': ('images_per_second', lambda value: f'{value:.2f}'),
    'groups': ('groups', str),
    'peak MiB': ('peak_mib', lambda value: f'{value:.0f}'),
    'step MiB': ('step_mib', lambda value: f'{value:.0f}'),
    'saved MiB': ('saved_mib', lambda value: f'{value:.0f}'),
    'B / token / channel': ('bytes_per_token_channel', lambda value: f'{value:.1f}'),
}


def print_header(result: dict[str, Any], changes: Sequence[str]) -> None:
    """Print the machine and what was changed in the config, before the measurement."""
    for line in (*header_lines(result), *changes, 'difference from the official formulation in fp32:'):
        print(line, flush=True)


def header_lines(result: dict[str, Any]) -> list[str]:
    """Return what the machine is, what is missing and which differences are allowed."""
    machine, options = result['machine'], result['options']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    rates = ', '.join(f'{name} {value:.0f}' for name, value in result['rates'].items())
    missing = '; '.join(f'{name} ({why})' for name, why in result.get('missing', {}).items())
    allowed = []
    for dtype in options['dtype']:
        outputs, gradient = tolerances(dtype, torch.device(options['device']))
        allowed.append(f'{dtype} {outputs:.0e} / {gradient:.0e}')
    return [
        f'machine: {machine["gpu"] or machine["cpu"]}, {machine["cpus"]} CPUs ({", ".join(machine["instructions"])}), '
        f'{machine["threads"]} threads, load before {machine["load_before"]}',
        f'versions: {versions}',
        f'rates, GFLOP/s: {rates}',
        f'missing: {missing or "nothing"}',
        f'allowed differences, outputs / gradient: {", ".join(allowed)}',
    ]


def report(result: dict[str, Any]) -> str:
    """Return Markdown: what was run, where, and the table."""
    options = result['options']
    parts = [f'# {_title(options)}', f'`{result["command"]}`']
    parts.append('\n'.join(f'- {line}' for line in (*header_lines(result), *_notes(result))))
    if options['command'] == 'profile':
        parts.append(operator_table(result['rows']))
    elif 'rows' in result:
        parts.append(time_table(result['rows'], options['dtype']))
    if 'points' in result:
        parts += [exponent_table(result['exponents']), point_table(result['points'])]
    return '\n\n'.join(parts) + '\n'


def _title(options: dict[str, Any]) -> str:
    parts = [Path(options['config']).stem if options['config'] else f'ConvNeXt {options["arch"]}', options['mode']]
    if options['batch']:
        sizes = ' '.join(f'{height}x{width}' for height, width in options['size'])
        parts += [f'batch {" ".join(map(str, options["batch"]))}', sizes]
    parts.append('operators' if options['command'] == 'profile' else f'{options["rounds"]} rounds in turn')
    return ', '.join(parts)


def _notes(result: dict[str, Any]) -> list[str]:
    """Return what has to be known to read the figures."""
    options = result['options']
    notes = []
    if 'gflop' in result:
        fp32_rates = [(rate, name) for name, rate in result['rates'].items() if name.endswith('linear fp32')]
        linear_rates = [(rate, name) for name, rate in result['rates'].items() if name.startswith(('linear', 'oneDNN'))]
        fp32_rate, _ = max(fp32_rates)
        best_rate, best_name = max(linear_rates)
        notes.append(
            f'products and convolutions of the backbone: {result["gflop"]:.4g} GFLOP a step, at the rates '
            f'above at least {result["gflop"] / fp32_rate * 1000:.1f} ms in fp32 and '
            f'{result["gflop"] / best_rate * 1000:.1f} ms by {best_name}'
        )
    if options['config'] and options['device'] == 'cpu' and options['dtype'] != ['fp32']:
        notes.append("half types in the backbone only: mmcv's CPU operators know none")
    if 'detections_per_image' in result:
        notes.append(f'{result["detections_per_image"]:.0f} detections an image, of random weights')
    if options['drop_path'] and options['mode'] == 'train':
        notes.append('with drop path, steps differ by what they draw: the medians count, not the minima')
    if options['command'] == 'profile':
        notes.append(
            'the fastest of five steps under the profiler; the rate is that of the products which the model '
            'needs, computed again or not'
        )
    return notes


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first line is its head."""
    head, *body = lines
    return '\n'.join(f'| {" | ".join(line)} |' for line in (head, ['---'] * len(head), *body))


def time_table(rows: Sequence[dict[str, Any]], dtypes: Sequence[str]) -> str:
    """Return the figures of each row, and its minimum and (median) over those of our row in each dtype."""
    columns = {}
    for title, (figure, write) in COLUMNS.items():
        if any(row.get(figure) is not None for row in rows):
            columns[title] = (figure, write)
    ratio_dtypes = [dtype for dtype in dtypes if any(f'ratio_min_{dtype}' in row for row in rows)]
    base = 'merged, fused' if any('groups' in row for row in rows) else 'ours'
    lines = [['', 'dtype', *columns, *(f'over {base} {dtype}' for dtype in ratio_dtypes)]]
    for row in rows:
        line = [row['name'], row['dtype']]
        for figure, write in columns.values():
            line.append('' if row.get(figure) is None else write(row[figure]))
        for dtype in ratio_dtypes:
            line.append(f'{row[f"ratio_min_{dtype}"]:.2f} ({row[f"ratio_median_{dtype}"]:.2f})')
        lines.append(line)
    return markdown_table(lines)


def operator_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return where the time of a step of each row goes."""
    kinds = list(rows[0]['operators'])
    lines = [['ms', 'dtype', 'all', *kinds, 'Linears, GFLOP/s']]
    for row in rows:
        milliseconds = [f'{row["operators"][kind]:.1f}' for kind in kinds]
        rate = f'{row["linear_gflop_per_s"]:.0f}'
        lines.append([row['name'], row['dtype'], f'{row["total"]:.1f}', *milliseconds, rate])
    return markdown_table(lines)


def exponent_table(exponents: dict[str, dict[str, float | None]]) -> str:
    """Return the exponents of scaling of each row."""
    titles = list(next(iter(exponents.values())))
    lines = [['exponent', *titles]]
    for name, found in exponents.items():
        lines.append([name, *('' if found[title] is None else f'{found[title]:.2f}' for title in titles)])
    return markdown_table(lines)


def point_table(points: Sequence[dict[str, Any]]) -> str:
    """Return the figures of each row at each batch and size."""
    lines = [['', 'batch', 'size', 'min ms', 'median ms', 'step MiB']]
    for point in points:
        size = f'{point["height"]}x{point["width"]}'
        times = [f'{point["min"] * 1000:.1f}', f'{point["median"] * 1000:.1f}']
        lines.append([point['row'], str(point['batch']), size, *times, str(point.get('step_mib', ''))])
    return markdown_table(lines)


def series(points: Sequence[dict[str, Any]], row: str, axis: str, what: str) -> list[tuple[float, float]]:
    """Return (pixels or batch, figure) of a row, with the other axis as in the first point.

    Args:
        points: Of the JSON file of ``scaling``.
        row: Key of the row.
        axis: 'pixels' or 'batch'.
        what: Name of the figure.
    """
    first_batch = points[0]['batch']
    first_size = (points[0]['height'], points[0]['width'])
    found = []
    for point in points:
        size = (point['height'], point['width'])
        on_axis = size == first_size if axis == 'batch' else point['batch'] == first_batch
        if point['row'] == row and point.get(what) and on_axis:
            position = point['batch'] if axis == 'batch' else size[0] * size[1]
            found.append((position, point[what]))
    return sorted(found)


def plot_scaling(result: dict[str, Any], out: Path) -> None:
    """Draw time and memory of a step against pixels and batch, a line per row.

    Args:
        result: As in the JSON file.
        out: .png or .svg to write.
    """
    import matplotlib  # of the extra [benchmark]

    matplotlib.use('Agg')
    from matplotlib import pyplot

    options = result['options']
    axes_labels = {
        'pixels': f'pixels of an image, batch {options["batch"][0]}',
        'batch': 'batch, {}x{}'.format(*options['size'][0]),
    }
    units = {'min': 'seconds (minimum)', 'step_mib': 'memory of a step, MiB'}
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 8), constrained_layout=True)
    for column, (axis, axis_label) in enumerate(axes_labels.items()):
        for line, (what, unit) in enumerate(units.items()):
            panel = panels[line][column]
            for row, exponents in result['exponents'].items():
                points = series(result['points'], row, axis, what)
                if points:
                    panel.plot(*zip(*points), marker='o', label=f'{row}: {exponents[f"{what} against {axis}"]}')
                    panel.legend(title='exponent', fontsize='small')
            panel.set(xscale='log', yscale='log', xlabel=axis_label, ylabel=unit)
            panel.grid(alpha=0.3, which='both')
    machine = result['machine']
    figure.suptitle(f'{options["arch"]}, {options["mode"]}, {machine["gpu"] or machine["cpu"]}')
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    pyplot.close(figure)
