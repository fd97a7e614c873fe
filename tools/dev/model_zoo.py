"""Bring the model index, tables and pictures of README and docs up to date: python tools/dev/model_zoo.py [--check]

Hand-written are the published figures, in configs/*/metafile.yml and tests/reference/published_results.csv. Everything
else about a model is read from its config or measured, here; times are those of docs/benchmarks/cpu_*.json.
"""

import argparse
import csv
import hashlib
import json
import re
import sys
from pathlib import Path

import yaml
from mmengine.config import Config
from roadmap_figure import draw_figure, figure_data

from convnext_dense.archs import ARCHS, ISOTROPIC_ARCHS, resolve_isotropic_arch
from convnext_dense.complexity import (
    PARTS,
    Complexity,
    build_on_meta,
    count,
    count_classifier,
    count_isotropic_classifier,
    image_shape,
)
from convnext_dense.errors import UserError
from convnext_dense.roadmap_table import markdown_table
from convnext_dense.run.options import errors_as_sentences
from convnext_dense.weights.known import NON_COMMERCIAL, known_weights

ROOT = Path(__file__).resolve().parents[2]
README, PICTURE = ROOT / 'README.md', ROOT / 'docs' / 'model_zoo.svg'
ZOO, SPEED = ROOT / 'docs' / 'reference' / 'model_zoo.md', ROOT / 'docs' / 'reference' / 'benchmarks.md'
MEMORY = ROOT / 'docs' / 'guides' / 'memory_and_speed.md'
ROADMAP, ROADMAP_PICTURE = ROOT / 'docs' / 'design' / 'roadmap.md', ROOT / 'docs' / 'design' / 'roadmap.svg'
# Those of the paper's tables and the picture.
FOLDERS = ('mask_rcnn', 'cascade_mask_rcnn', 'upernet')
LATER_FOLDERS = ('convnext_v2', 'dinov3', 'eupe', 'clip', 'modern_heads')
# The counting rule does not cover heads with deformable attention: their parameters are counted, their FLOPs are not.
WITHOUT_FLOPS = ('modern_heads',)
DEMO = 'convnext_digits.py'
# The rows of the README; all others are in the model zoo.
README_CONFIGS = (
    'configs/mask_rcnn/convnext_t_3x_coco.py',
    'configs/cascade_mask_rcnn/convnext_t_3x_coco.py',
    'configs/cascade_mask_rcnn/convnext_b_3x_coco.py',
    'configs/upernet/convnext_t_512_160k_ade20k.py',
    'configs/upernet/convnext_b_in22k_640_160k_ade20k.py',
)
PUBLISHED = ROOT / 'tests' / 'reference' / 'published_results.csv'
BENCHMARKS = ROOT / 'docs' / 'benchmarks'
SIZES = dict(tiny='T', small='S', base='B', large='L', xlarge='XL', huge='H', xxlarge='XXL')
# What weights were trained on, by a part of their address; the first one that is found.
PRETRAININGS = {
    'pt_only': 'FCMAE',
    'convnextv2/im22k': 'FCMAE, ImageNet-22K',
    'convnextv2/im1k': 'FCMAE, ImageNet-1K',
    'dinov3': 'DINOv3, LVD-1689M',
    'EUPE': 'EUPE',
    'clip_laion2b': 'CLIP, LAION-2B',
    '22k': 'ImageNet-22K',
    '': 'ImageNet-1K',
}
SWIN_SIZES = {(96, 6): 'T', (96, 18): 'S', (128, 18): 'B', (192, 18): 'L'}  # channels, blocks of the third stage


def backbone_name(backbone: dict) -> str:
    """As in the published tables, such as Swin-T or ResNeXt-101-64x4d."""
    kind = backbone['type'].split('.')[-1]
    if kind == 'ConvNeXt':
        return f'ConvNeXt{" V2" if backbone.get("use_grn") else ""}-{SIZES[backbone["arch"]]}'
    if kind == 'SwinTransformer':
        return f'Swin-{SWIN_SIZES[backbone["embed_dims"], backbone["depths"][2]]}'
    if kind == 'ResNeXt':
        return f'ResNeXt-{backbone["depth"]}-{backbone["groups"]}x{backbone["base_width"]}d'
    return f'{kind}-{backbone["depth"]}'


def derived(cfg: Config, found: Complexity) -> dict:
    """The part of a row's metadata that follows from its config."""
    height, width = found.shape
    source = cfg.model.backbone.init_cfg.checkpoint
    licence = known_weights(source).licence
    entries = {
        'Backbone': backbone_name(cfg.model.backbone),
        'Pretraining': next(name for part, name in PRETRAININGS.items() if part in source),
        'Licence of Weights': licence,
        'Input': f'{width}x{height}',
        'Parameters': found.total_params,
        'FLOPs': found.total_flops,
        'Attention FLOPs': found.attention,
    }
    return {key: value for key, value in entries.items() if value}


def measured(cfg: Config, folder: str) -> Complexity:
    """Count a model, or its parameters alone."""
    if folder not in WITHOUT_FLOPS:
        return count(cfg)
    num_params = sum(param.numel() for param in build_on_meta(cfg).parameters())
    return Complexity(dict.fromkeys(PARTS, 0) | dict(heads=num_params), shape=image_shape(cfg))


def read_folder(folder: str) -> tuple[str, dict]:
    """Leading comment and content of a metafile, with everything derived made anew.

    Raises:
        UserError: The configs of the folder and the rows of its metafile are not the same.
    """
    path = ROOT / 'configs' / folder / 'metafile.yml'
    text = path.read_text()
    content = yaml.safe_load(text)
    rows = {model['Config'] for model in content['Models']}
    configs = {str(leaf.relative_to(ROOT)) for leaf in path.parent.glob('*.py') if leaf.name != DEMO}
    if rows != configs:
        raise UserError(
            f'{path.relative_to(ROOT)} and the configs beside it differ in {sorted(rows ^ configs)}: each '
            'config needs one row, each row a config'
        )
    for model in content['Models']:
        cfg = Config.fromfile(ROOT / model['Config'])
        by_hand = {key: value for key, value in model['Metadata'].items() if key.startswith(('Published', 'Source'))}
        model['Metadata'] = derived(cfg, measured(cfg, folder)) | by_hand
    return text[: text.index('Collections:')], content


def difference(measured: float, published: float | str) -> str:
    return f'{100 * (measured / float(published) - 1):+.2f} %'


def table(header: list[str], rows: list[list[str]]) -> str:
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in [header, ['---'] * len(header), *rows])


def counts(metadata: dict) -> list[str]:
    """The cells params published, measured, FLOPs published, measured, difference."""
    flops, published = metadata.get('FLOPs', 0) / 1e9, metadata.get('Published FLOPs (G)')
    counted, compared = f'{flops:.1f}' if flops else 'not counted', flops
    if 'Published FLOPs leave out' in metadata:
        compared = (metadata['FLOPs'] - metadata['Attention FLOPs']) / 1e9
        counted += f', {compared:.1f} without {metadata["Published FLOPs leave out"]}'
    return [
        str(metadata.get('Published Parameters (M)', '')),
        f'{metadata["Parameters"] / 1e6:.1f}',
        str(published or ''),
        counted,
        difference(compared, published) if published else '',
    ]


def metrics(model: dict) -> dict[str, float]:
    return {name: value for result in model.get('Results', ()) for name, value in result['Metrics'].items()}


def model_tables(folders: dict[str, dict]) -> dict[str, str]:
    """The tables of detectors and of segmentors in the model zoo."""
    tables = {'detectors': [], 'segmentors': []}
    for folder, content in folders.items():
        for model in content['Models']:
            metadata, found = model['Metadata'], metrics(model)
            config = model['Config'].removeprefix('configs/')
            name = f'[`{config}`](../../{model["Config"]})'
            weights = f'[weights]({model["Weights"]})' if 'Weights' in model else ''
            before = [name, metadata['Backbone'], metadata['Pretraining'].removeprefix('ImageNet-')]
            after = [*counts(metadata), metadata['Source'], weights]
            if folder == 'upernet':
                accuracy = [str(found.get('mIoU', '')), str(found.get('mIoU (ms+flip)', ''))]
                tables['segmentors'].append(before + accuracy + after)
            else:
                accuracy = [str(found.get('box AP', '')), str(found.get('mask AP', ''))]
                tables['detectors'].append(before + accuracy + after)
    before = ['config', 'backbone', 'ImageNet']
    after = ['params M, published', 'measured', 'FLOPs G, published', 'measured', 'difference', 'published in', '']
    return {
        'detectors': table(before + ['box AP', 'mask AP'] + after, tables['detectors']),
        'segmentors': table(before + ['mIoU', 'multi-scale'] + after, tables['segmentors']),
    }


def is_segmentor(model: dict) -> bool:
    return 'ade20k' in model['Config']


def later_tables(folders: dict[str, dict]) -> dict[str, str]:
    """The tables of detectors and of segmentors on weights, and with heads, that are not in the paper."""
    tables = {'later detectors': [], 'later segmentors': []}
    for content in folders.values():
        for model in content['Models']:
            metadata, found = model['Metadata'], metrics(model)
            name = f'[`{model["Config"].removeprefix("configs/")}`](../../{model["Config"]})'
            licence = metadata['Licence of Weights']
            licence = f'**{licence}**' if NON_COMMERCIAL in licence else licence
            names = ('mIoU', 'mIoU (ms+flip)') if is_segmentor(model) else ('box AP', 'mask AP')
            accuracy = [str(found.get(key, '')) for key in names]
            row = [name, metadata['Backbone'], metadata['Pretraining'], *accuracy, *counts(metadata), licence]
            tables[f'later {"segmentors" if is_segmentor(model) else "detectors"}'].append([*row, metadata['Source']])
    before = ['config', 'backbone', 'pre-training']
    after = ['params M, published', 'measured', 'FLOPs G, published', 'measured', 'difference']
    after += ['licence of the weights', 'published in']
    return {
        'later detectors': table([*before, 'box AP', 'mask AP', *after], tables['later detectors']),
        'later segmentors': table([*before, 'mIoU', 'multi-scale', *after], tables['later segmentors']),
    }


def short_table(folders: dict[str, dict]) -> str:
    """The README's table: few models, each linked to its config."""
    rows = []
    for content in folders.values():
        for model in content['Models']:
            if model['Config'] in README_CONFIGS:
                metadata, found = model['Metadata'], metrics(model)
                name = f'[{model["In Collection"]}, {metadata["Backbone"]}]({model["Config"]})'
                accuracy = str(found.get('box AP') or found['mIoU'])
                params, flops = f'{metadata["Parameters"] / 1e6:.1f}', f'{metadata["FLOPs"] / 1e9:.1f}'
                rows.append([name, metadata['Pretraining'].removeprefix('ImageNet-'), accuracy, params, flops])
    return table(['config', 'ImageNet', 'box AP or mIoU', 'params M', 'FLOPs G'], rows)


def arch_table() -> str:
    """Archs beside the paper's Table 1, and the rows of Table 2."""
    with PUBLISHED.open(newline='') as file:
        published = {
            (row['backbone'], row['input']): row for row in csv.DictReader(file) if row['method'].startswith('ImageNet')
        }
    header = ['arch', 'blocks (B)', 'channels (C)', 'params M, published', 'measured']
    rows = []
    for side in (224, 384):
        header += [f'FLOPs G at {side}, published', 'measured', 'difference']
    for arch, sizes in ARCHS.items():
        name = f'ConvNeXt-{SIZES.get(arch)}'
        params = published.get((name, '224x224'), {}).get('params_M', '')
        cells = [f'`{arch}`', *(', '.join(map(str, sizes[key])) for key in ('depths', 'channels'))]
        for side in (224, 384):
            found = count_classifier(arch, side)
            if side == 224:
                cells += [params, f'{found.total_params / 1e6:.1f}']
            flops = published.get((name, f'{side}x{side}'), {}).get('flops_G', '')
            cells += [flops, f'{found.total_flops / 1e9:.1f}', flops and difference(found.total_flops / 1e9, flops)]
        rows.append(cells)
    for arch in ISOTROPIC_ARCHS:
        row = published[f'ConvNeXt-{SIZES[arch]} (iso.)', '224x224']
        depth, channels, _ = resolve_isotropic_arch(arch)
        found = count_isotropic_classifier(arch, 224)
        cells = [f'isotropic `{arch}`', str(depth), str(channels), row['params_M'], f'{found.total_params / 1e6:.1f}']
        gflops = found.total_flops / 1e9
        rows.append([*cells, row['flops_G'], f'{gflops:.1f}', difference(gflops, row['flops_G']), '', '', ''])
    return table(header, rows)


def performance_table() -> str:
    """Backbones beside their peers: fastest times, and as factors of ours in the same type."""
    columns, names, found = [], [], []
    for arch in ('tiny', 'base'):
        for mode in ('inference', 'train'):
            result = json.loads((BENCHMARKS / f'cpu_{arch}_{mode}.json').read_text())
            found.append(result)
            names += [row['name'] for row in result['rows']]
            columns += [
                (arch, mode, dtype, {row['name']: row for row in result['rows'] if row['dtype'] == dtype})
                for dtype in result['options']['dtype']
            ]
    rows = [
        [
            name,
            *(
                f'{row["min"] * 1000:.0f} ({row[f"ratio_min_{dtype}"]:.2f}x)' if row else ''
                for row, dtype in ((cells.get(name), dtype) for _, _, dtype, cells in columns)
            ),
        ]
        for name in dict.fromkeys(names)
    ]
    versions = found[0]['machine']['versions']
    rates = ', '.join(f'{name} {value:.0f}' for name, value in found[0]['rates'].items() if 'linear' in name)
    machine = found[0]['machine']
    text = (
        f'{machine["cpu"]} with {", ".join(machine["instructions"])}, {machine["threads"]} threads; its matrix '
        f'products in GFLOP/s: {rates}. '
        + ', '.join(
            f'{name} {versions[name]}'
            for name in ('torch', 'timm', 'torchvision', 'transformers', 'mmpretrain', 'onnxruntime', 'openvino')
        )
        + '.'
    )
    return f'{table(["ms", *(f"{SIZES[arch]} {mode} {dtype}" for arch, mode, dtype, _ in columns)], rows)}\n\n{text}'


# Rows of the memory table: what a user writes, the row that was measured, what is computed again.
MEMORY_ROWS = (
    ('plain autograd', 'ours eager', 'nothing'),
    ("`'default'`", 'ours', 'nothing'),
    ("`'lean'`", 'ours lean', 'the first Linear of each block'),
    ("`'checkpoint'`, or `with_cp=True`", 'ours checkpoint', 'the whole block'),
)


def memory_table() -> str:
    """What a block saves for the backward pass, and the time of a step, as measured for ConvNeXt-T."""
    result = json.loads((BENCHMARKS / 'cpu_tiny_train.json').read_text())
    measured = {(row['name'], row['dtype']): row for row in result['rows']}
    rows = []
    for setting, name, again in MEMORY_ROWS:
        cells = [setting]
        for dtype in ('bf16', 'fp32'):
            row = measured[name, dtype]
            cells += [f'{row["bytes_per_token_channel"]:.3g}', f'{row["min"] * 1000:.0f}']
        rows.append([*cells, again])
    header = [
        '`memory`',
        'bytes, bf16 mixed precision',
        'ms',
        'bytes, fp32',
        'ms',
        'computed again in the backward pass',
    ]
    return table(header, rows)


def points(folders: dict[str, dict]) -> list[tuple[str, str, str, float, float]]:
    """(task, method, series, FLOPs in G, accuracy) of every row with a published accuracy."""
    found = []
    for folder, content in folders.items():
        for model in content['Models']:
            accuracy, metadata = metrics(model), model['Metadata']
            if accuracy:
                family = metadata['Backbone'].split('-')[0].replace('ResNeXt', 'ResNet')
                series = f'{family}, {metadata["Pretraining"]}' if family != 'ResNet' else 'ResNet, ResNeXt'
                task, value = (
                    ('ADE20K, multi-scale mIoU', accuracy['mIoU (ms+flip)'])
                    if folder == 'upernet'
                    else ('COCO, box AP', accuracy['box AP'])
                )
                found.append(
                    (
                        task,
                        content['Collections'][0]['Name'],
                        series,
                        round(metadata['FLOPs'] / 1e9, 1),
                        value,
                    )
                )
    return found


def digest_of(data: list[tuple]) -> str:
    """Of what the picture shows: its lines differ between versions of matplotlib."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def draw(data: list[tuple], out: Path, description: str) -> None:
    """Draw the published accuracy over counted FLOPs into an SVG file with this description."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    styles = {
        'ConvNeXt, ImageNet-1K': ('#1f5fb4', 'o', '-'),
        'ConvNeXt, ImageNet-22K': ('#1f5fb4', 's', '--'),
        'Swin, ImageNet-1K': ('#c4551c', 'o', '-'),
        'Swin, ImageNet-22K': ('#c4551c', 's', '--'),
        'ResNet, ResNeXt': ('#666666', '^', ':'),
    }
    # Text stays text and ids do not change from run to run.
    with plt.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'model zoo', 'font.size': 9}):
        tasks = list(dict.fromkeys(point[0] for point in data))
        figure, axes = plt.subplots(1, len(tasks), figsize=(9, 3.6))
        for task, axis in zip(tasks, axes):
            for series, (color, marker, line) in styles.items():
                for method in dict.fromkeys(point[1] for point in data if point[0] == task):
                    chosen = sorted(point[3:] for point in data if point[:3] == (task, method, series))
                    if chosen:
                        axis.plot(
                            *zip(*chosen),
                            color=color,
                            marker=marker,
                            linestyle=line,
                            markersize=5,
                            markerfacecolor='white' if method == 'Mask R-CNN' else color,
                            label=series,
                        )
            axis.set_xlabel('FLOPs (G, counted)')
            axis.set_ylabel(f'{task} (published)')
            axis.grid(alpha=0.3)
        for axis, text in zip(axes, ('hollow: Mask R-CNN\nfilled: Cascade Mask R-CNN', 'UperNet')):
            axis.annotate(text, (0.97, 0.05), xycoords='axes fraction', ha='right')
        handles = {text: handle for axis in axes.flat for handle, text in zip(*axis.get_legend_handles_labels())}
        shown = [series for series in styles if series in handles]
        figure.legend([handles[series] for series in shown], shown, loc='upper center', ncols=3, frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 0.88))
        figure.savefig(out, metadata={'Date': None, 'Description': description})
        plt.close(figure)


def with_tables(path: Path, tables: dict[str, str]) -> str:
    """The text of a page with each table between its markers."""
    page = path.read_text()
    for name, text in tables.items():
        marked = re.compile(rf'(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)', re.S)
        if not marked.search(page):
            raise UserError(
                f'{path.relative_to(ROOT)} has no markers for the table of {name}: put <!-- {name}: ... --> and '
                f'<!-- end of {name} --> where it belongs'
            )
        page = marked.sub(lambda match, text=text: f'{match[1]}{text}\n{match[2]}', page)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--check', action='store_true', help='write nothing; fail where something is not up to date')
    args = parser.parse_args()
    with errors_as_sentences():
        if not PUBLISHED.exists():
            raise UserError(
                'tools/dev/model_zoo.py works on a clone of the repository: an installed package has no README'
            )
        read = {folder: read_folder(folder) for folder in (*FOLDERS, *LATER_FOLDERS)}
        folders = {folder: read[folder][1] for folder in FOLDERS}
        later = {folder: read[folder][1] for folder in LATER_FOLDERS}
        wanted = {
            ROOT / 'configs' / folder / 'metafile.yml': comment + yaml.safe_dump(content, sort_keys=False, width=120)
            for folder, (comment, content) in read.items()
        }
        wanted[README] = with_tables(README, {'models': short_table(folders)})
        wanted[ZOO] = with_tables(ZOO, model_tables(folders) | later_tables(later) | {'archs': arch_table()})
        wanted[SPEED] = with_tables(SPEED, {'performance': performance_table()})
        wanted[MEMORY] = with_tables(MEMORY, {'memory': memory_table()})
        wanted[ROADMAP] = with_tables(ROADMAP, {'roadmap': markdown_table()})
        pictures = {PICTURE: (points(folders), draw), ROADMAP_PICTURE: (figure_data(), draw_figure)}
        stale = [path for path, text in wanted.items() if path.read_text() != text]
        old_pictures = [
            path for path, (data, _) in pictures.items() if not path.exists() or digest_of(data) not in path.read_text()
        ]
        names = [str(path.relative_to(ROOT)) for path in stale + old_pictures]
        if args.check and names:
            raise UserError(
                f'{", ".join(names)}: not up to date with the configs and published figures, run python '
                'tools/dev/model_zoo.py'
            )
        for path in () if args.check else stale:
            path.write_text(wanted[path])
        for path in old_pictures:
            data, draw_data = pictures[path]
            draw_data(data, path, digest_of(data))
        print(f'written: {", ".join(names)}' if names else 'everything is up to date', file=sys.stderr)


if __name__ == '__main__':
    main()
