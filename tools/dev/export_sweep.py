"""How many families of the installed zoos export whole: python tools/dev/export_sweep.py --out OUT.json [--prove]

One model per family that runs here by docs/benchmarks/swap_sweep.json, as its zoo has it, with random weights. Without
--prove, the module over the toolkit's parts is compared with the toolkit; with it, the file in ONNX Runtime too.
Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from random_weights import random_weights
from swap_sweep import TOOLKITS, family, run_apart

from convnext_dense.export import prove, whole_model, write_onnx
from convnext_dense.export.files import with_score_threshold
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.runtime.sessions import ONNXRuntimeSession

SWEEP = Path(__file__).resolve().parents[2] / 'docs/benchmarks/swap_sweep.json'


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split(':')[0])
    parser.add_argument('--out', type=Path, required=True, metavar='JSON', help='written after every family')
    parser.add_argument('--prove', action='store_true', help='write files and prove them in ONNX Runtime')
    parser.add_argument('--only', default='', metavar='TEXT', help='only families with this in their name')
    parser.add_argument('--cpu-seconds', type=int, default=300, help='limit of one model')
    parser.add_argument('--memory', type=float, default=12, metavar='GIB', help='limit of one model')
    args = parser.parse_args()
    for toolkit in TOOLKITS:
        importlib.import_module(f'{toolkit}.utils').register_all_modules(init_default_scope=False)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name, config in families().items():
        if args.only not in name or (name in results and (results[name]['proved'] or not args.prove)):
            continue
        found = run_apart(one_model, args.cpu_seconds, args.memory, config, args.prove)
        found['outcome'] = {'runs': 'exports'}.get(found['outcome'], found['outcome'])
        results[name] = dict(config=config, proved=args.prove, **found)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + '\n')
        print(f'{name}: {found["outcome"]} {found["seconds"]} s {found.get("reason", "")[:200]}', flush=True)
    text = table(results)
    args.out.with_suffix('.md').write_text(text)
    print(text)


def families() -> dict[str, str]:
    """Return the first config of every family that runs here."""
    chosen: dict[str, str] = {}
    for model in json.loads(SWEEP.read_text())['models']:
        if model['before'] != 'runs':
            continue
        for config in model['configs']:
            chosen.setdefault(family(config), config)
    return dict(sorted(chosen.items()))


def one_model(config: str, with_file: bool) -> dict[str, Any]:
    """Prove that the model of a config exports.

    Raises:
        UserError: No family of the export fits, or the results differ.
    """
    toolkit, _, path = config.partition('::')
    folder = Path(importlib.import_module(toolkit).__file__ or '').parent / '.mim/configs'
    cfg = Config.fromfile(folder / path)
    cfg.default_scope = toolkit
    init_default_scope(toolkit)
    fit_to_machine(cfg, 'none')
    model: Any = MODELS.build(cfg.model)
    whole_model(model.eval())  # refuses most at once
    model.dataset_meta = dict(classes=[str(i) for i in range(2000)], palette=[])
    random_weights(model)
    whole = whole_model(model)
    if not with_file:
        return dict(proof=str(prove(model, whole, lambda _: ModuleAsFile(whole))))
    with tempfile.TemporaryDirectory() as folder_of_file:
        graph = Path(folder_of_file) / 'model.onnx'
        write_onnx(whole, graph, {})

        def open_file(threshold: float | None) -> ONNXRuntimeSession:
            return ONNXRuntimeSession(graph if threshold is None else with_score_threshold(graph, threshold))

        return dict(proof=str(prove(model, whole, open_file)))


class ModuleAsFile:
    """A module in the place of its exported file."""

    metadata = None

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def run(self, image: Any, names: list[str]) -> list[Any]:
        outputs = self.whole(torch.from_numpy(image))
        return [outputs[self.whole.output_names.index(name)].numpy() for name in names]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return Markdown: the counts, and the families with what was found."""
    counts = collections.Counter(found['outcome'] for found in results.values())
    in_files = sum(found['outcome'] == 'exports' and found['proved'] for found in results.values())
    lines = [
        f'{counts["exports"]} of {len(results)} families of mmdet and mmseg that run here export whole '
        f'({counts["exports"] / max(len(results), 1):.0%}); {in_files} of them were proved as a file, the others '
        'as the module that is exported.',
        '',
        'Made by `tools/dev/export_sweep.py`: the first model of each family, as its zoo has it, with random weights.',
        '',
        '| family | outcome | as a file | why not, or what was compared |',
        '|---|---|---|---|',
    ]
    for name, found in results.items():
        text = (found.get('reason') or found.get('proof') or '').replace('|', '/').replace('\n', ' ')
        proved = 'yes' if found['proved'] and found['outcome'] == 'exports' else ''
        lines.append(f'| {name} | {found["outcome"]} | {proved} | {text[:300]} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
