"""The paper's Figure 2 with counted FLOPs and parameters, drawn by tools/dev/model_zoo.py."""

from pathlib import Path

from convnext_dense.roadmap_table import TITLES, rows

COLORS = dict(T='#b9a3d6', B='#b8b8b8')
NAMES = dict(T='ResNet-50 to ConvNeXt-T', B='ResNet-200 to ConvNeXt-B')


def figure_data() -> list[tuple[str, str, float, float, float]]:
    """(regime, step, published top-1 in %, counted GFLOPs, counted parameters in M) of every row."""
    data = []
    for row in rows():
        data.append(
            (row.regime, row.step, float(row.published_top1), round(row.flops / 1e9, 2), round(row.params / 1e6, 1))
        )
    return data


def draw_figure(data: list[tuple[str, str, float, float, float]], out: Path, description: str) -> None:
    """Draw one row per step: bars of the published accuracy, with the counted figures written into them.

    Args:
        data: What :func:`figure_data` returns.
        out: SVG file to write.
        description: Goes into the file's metadata, so that a check need not draw.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    steps = list(TITLES)
    # Text stays text and ids do not change from run to run.
    with plt.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'roadmap', 'font.size': 8}):
        figure, axes = plt.subplots(figsize=(9, 7.5))
        for regime, step, top1, gflops, params in data:
            position = steps.index(step) + (-0.2 if regime == 'T' else 0.2)
            axes.barh(position, top1, height=0.38, color=COLORS[regime])
            axes.annotate(f'{top1:.2f}', (top1 + 0.08, position), va='center')
            axes.annotate(f'{gflops:.2f} G, {params:.1f} M', (73.15, position), va='center')
        axes.set_yticks(range(len(steps)), [TITLES[step] for step in steps])
        axes.invert_yaxis()
        axes.set_xlim(73, 85)
        axes.set_xlabel('ImageNet-1K top-1 in %, published; FLOPs and parameters of the classifier at 224x224, counted')
        for regime, name in NAMES.items():
            axes.barh(0, 0, color=COLORS[regime], label=name)
        axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        axes.spines[['top', 'right']].set_visible(False)
        figure.tight_layout()
        figure.savefig(out, metadata={'Date': None, 'Description': description})
        plt.close(figure)
