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
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from random_weights import random_weights
from swap_sweep import TOOLKITS, family, run_apart, values_of, without_weights

from convnext_dense.export import prove, whole_model, write_onnx
from convnext_dense.export.files import with_score_threshold
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.runtime.sessions import ONNXRuntimeSession

FIXED_SIZE = (512, 512)  # for models that do not take every size, as with tools/export.py --size
SHAPES = ((1, 96, 144), (2, 101, 139), (1, 160, 107))  # smaller than those of an export: there are many models
SWEEP = Path(__file__).resolve().parents[2] / 'docs/benchmarks/swap_sweep.json'


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split(':')[0])
    parser.add_argument('--out', type=Path, required=True, metavar='JSON', help='written after every family')
    parser.add_argument('--prove', action='store_true', help='write files and prove them in ONNX Runtime')
    parser.add_argument('--publish', type=Path, metavar='JSON', help='also write a summary, and its table beside it')
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
    print(table(results))
    if args.publish:
        publish(args.publish, results)


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
    os.chdir(folder.parent)  # teacher configs are given relative to it
    model_cfg = Config(dict(model=without_weights(cfg.model.to_dict()))).model
    whole_model(MODELS.build(model_cfg).eval())  # refuses most at once
    try:
        return dict(proof=proof_of(model_cfg, with_file, None))
    except Exception as error:  # those that hold sizes of their example, or take one size only
        at_any_size = f'{type(error).__name__}: {error}'
    return dict(proof=proof_of(model_cfg, with_file, FIXED_SIZE), at_any_size=at_any_size)


def proof_of(model_cfg: Any, with_file: bool, size: tuple[int, int] | None) -> str:
    """Return what was compared, of the file or of the module alone.

    Args:
        model_cfg: Of a model of a toolkit.
        with_file: Write a file and run it in ONNX Runtime.
        size: Height and width of the images, or None for a model of any size.

    Raises:
        UserError: The results differ, or the model needs ``size``.
    """
    model: Any = MODELS.build(model_cfg)
    classes = max(number for number in values_of(model_cfg, 'num_classes') if isinstance(number, int))
    model.dataset_meta = dict(classes=[str(i) for i in range(classes)], palette=[])
    random_weights(model) if size is None else random_weights(model, size)
    whole = whole_model(model)
    shapes = SHAPES if size is None else ((1, *size), (2, *size))
    if not with_file:
        module = ModuleAsFile(whole)
        return str(prove(model, whole, lambda _: module, shapes))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / 'model.onnx'
        write_onnx(whole, graph, {}, size)

        def open_file(threshold: float | None) -> ONNXRuntimeSession:
            return ONNXRuntimeSession(graph if threshold is None else with_score_threshold(graph, threshold))

        return str(prove(model, whole, open_file, shapes))


class ModuleAsFile:
    """A module in the place of its exported file. It does not compute again what it has just computed."""

    metadata = None

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.computed: dict[tuple[int, ...], tuple[torch.Tensor, Any]] = {}  # by shape: images and outputs
        whole.register_forward_hook(self.remember)

    def remember(self, whole: Any, inputs: tuple[torch.Tensor], outputs: Any) -> None:
        self.computed[tuple(inputs[0].shape)] = (inputs[0], outputs)

    def run(self, image: Any, names: list[str]) -> list[Any]:
        images = torch.from_numpy(image)
        if not torch.equal(self.computed[image.shape][0], images):
            self.whole(images)
        outputs = self.computed[image.shape][1]
        return [outputs[self.whole.output_names.index(name)].numpy() for name in names]


def publish(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write what was found with the versions it was found with as JSON, and as a table beside it."""
    modules = ('torch', 'mmengine', 'mmcv', *TOOLKITS)
    versions = {name: importlib.import_module(name).__version__ for name in modules}
    if any(found['proved'] for found in results.values()):
        versions['onnxruntime'] = importlib.import_module('onnxruntime').__version__
    path.write_text(json.dumps(dict(versions=versions, families=results), indent=1) + '\n')
    path.with_suffix('.md').write_text(table(results))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return Markdown: the counts, and the families with what was found."""
    counts = collections.Counter(found['outcome'] for found in results.values())
    in_files = sum(found['outcome'] == 'exports' and found['proved'] for found in results.values())
    share = counts['exports'] / max(len(results), 1)
    lines = [
        '# Exporting a model of every family of the zoos',
        '',
        'Made by `tools/dev/export_sweep.py`: the first model of each family that runs here '
        '([the swap sweep](swap_sweep.md) lists these), as its zoo has it, with random weights. A family is a folder '
        'of configs.',
        '',
        f'Of {len(results)} families, {counts["exports"]} ({share:.0%}) export whole and give what the toolkit gives, '
        f'{counts["refused"]} are refused with a reason, {counts["fails"]} fail. Of those that export, {in_files} were '
        f'compared as a file in ONNX Runtime, {counts["exports"] - in_files} as the module that is exported.',
        '',
        '| family | model | outcome | as a file | why not, or what was compared |',
        '|---|---|---|---|---|',
    ]
    for name, found in sorted(results.items()):
        text = (found.get('reason') or found.get('proof') or '').replace('|', '/').replace('\n', ' ')
        text = text.removesuffix(': export --part backbone or --part neck instead')
        proved = 'yes' if found['proved'] and found['outcome'] == 'exports' else ''
        model = Path(found['config']).stem
        lines.append(f'| {name} | {model} | {found["outcome"]} | {proved} | {text[:300]} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
