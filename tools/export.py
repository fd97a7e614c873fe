"""Export a trained model: python tools/export.py CONFIG CHECKPOINT OUT.onnx [--part model|neck|backbone]

The file has everything inside, from the raw image to the result, and is run by python -m convnext_dense.runtime. It is
compared with the toolkit's own model at three sizes and removed if it differs. OUT.xml is OpenVINO IR.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from _arguments import add_config, add_overwrite, argument_parser


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'HEIGHTxWIDTH in pixels was wanted, such as 512x512, found {text}')
    return int(height), int(width)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file of the model, or, for --part backbone, of its backbone')
    parser.add_argument('out', type=Path, metavar='OUT', help='file to write, OUT.onnx or, for OpenVINO, OUT.xml')
    parser.add_argument(
        '--part',
        choices=['model', 'neck', 'backbone'],
        help='the whole model (default), the backbone and the neck behind it, or the backbone',
    )
    parser.add_argument('--with-neck', action='store_true', help='the same as --part neck')
    parser.add_argument('--size', type=parse_size, help='HEIGHTxWIDTH: fix the size; default: any size')
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help='print the metrics of checkpoint and file on the test set of the config; of OUT.xml in bfloat16 too, if '
        'the processor computes in it',
    )
    add_overwrite(parser, 'OUT if it exists')
    args = parser.parse_args()
    if args.with_neck:
        if args.part not in (None, 'neck'):
            parser.error(f'--with-neck is --part neck, found --part {args.part} too')
        args.part = 'neck'
    args.part = args.part or 'model'
    return args


def main() -> None:
    args = parse_arguments()

    from convnext_dense.errors import UserError
    from convnext_dense.export import evaluate, export_model, of_checkpoint, of_file
    from convnext_dense.outputs import check_file_output
    from convnext_dense.run.machine import fit_to_machine
    from convnext_dense.run.metrics import metrics_table
    from convnext_dense.run.options import errors_as_sentences, read_config
    from convnext_dense.runtime import Model
    from convnext_dense.runtime.sessions import computes_bf16
    from convnext_dense.toolkits import check_toolkit
    from convnext_dense.weights.sources import check_source

    with errors_as_sentences():
        if args.out.suffix != '.onnx' and (args.out.suffix != '.xml' or args.part != 'model'):
            raise UserError(
                f'the graph is written as ONNX, and a whole model as OpenVINO IR too, found {args.out}: give a name '
                'that ends in .onnx, or in .xml for a whole model'
            )
        if args.part != 'model' and (args.size or args.evaluate):
            raise UserError(f'--size and --evaluate are for whole models, found --part {args.part}: leave them out')
        check_source(args.checkpoint, 'checkpoint')
        beside = [args.out.with_suffix('.bin')] if args.out.suffix == '.xml' else []
        for path in (args.out, *beside):
            check_file_output(path, inputs=[args.checkpoint], overwrite=args.overwrite)
        cfg = read_config(args.config, args.cfg_options)
        check_toolkit(cfg.get('default_scope') or 'mmengine')
        if args.part == 'model':
            fit_to_machine(cfg, 'none')
            print(export_model(cfg, args.checkpoint, args.out, args.size))
            if args.evaluate:
                rows = [
                    (args.checkpoint, of_checkpoint(cfg, args.checkpoint)),
                    (args.out, of_file(Model(args.out))),
                ]
                if args.out.suffix == '.xml' and computes_bf16():
                    rows.append((f'{args.out} with --bf16', of_file(Model(args.out, bf16=True))))
                for title, predict in rows:
                    metrics = evaluate(predict, cfg)
                    print(f'\n{title}\n{metrics_table(metrics) if metrics else "nothing was detected"}')
        else:
            export_part(args, cfg)


def export_part(args: argparse.Namespace, cfg: Any) -> None:
    from convnext_dense.export import CHECKED_SHAPES, INSTALL, check_onnx, export_onnx, load_features
    from convnext_dense.outputs import whole_files

    model = load_features(cfg, args.checkpoint, args.part == 'neck')
    in_channels = cfg.model.backbone.get('in_channels', 3)
    with whole_files(args.out) as path:
        export_onnx(model, path, in_channels)
        if importlib.util.find_spec('onnxruntime') is None:
            verdict = f'not checked: onnxruntime is not installed ({INSTALL})'
        else:
            difference = check_onnx(model, path, in_channels)
            verdict = f'equals the model within {difference:.1e} in ONNX Runtime, at ' + ', '.join(
                f'{n}x{in_channels}x{h}x{w}' for n, h, w in CHECKED_SHAPES
            )
    parts = 'backbone and neck' if args.part == 'neck' else 'backbone'
    print(f'{args.out}: {parts}, {args.out.stat().st_size / 2**20:.1f} MiB, {verdict}')


if __name__ == '__main__':
    main()
