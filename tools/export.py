"""Export a trained backbone to ONNX: python tools/export.py CONFIG CHECKPOINT OUT.onnx [--with-neck]

Batch, height and width of the graph are free. It is compared with the model in ONNX Runtime at three sizes.
"""

from pathlib import Path

from _arguments import add_config, argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file of the model, or of its backbone')
    parser.add_argument('out', type=Path, metavar='OUT.onnx', help='file to write')
    parser.add_argument('--with-neck', action='store_true', help='the backbone and the neck behind it, such as FPN')
    args = parser.parse_args()

    from convnext_dense.errors import UserError
    from convnext_dense.export import CHECKED_SHAPES, INSTALL, check_onnx, export_onnx, load_features
    from convnext_dense.run.options import errors_as_sentences, read_config
    from convnext_dense.toolkits import check_toolkit
    from convnext_dense.weights.sources import check_source

    with errors_as_sentences():
        if args.out.suffix != '.onnx':
            raise UserError(f'the graph is written as ONNX, found {args.out}: give a name that ends in .onnx')
        check_source(args.checkpoint, 'checkpoint')
        cfg = read_config(args.config, args.cfg_options)
        check_toolkit(cfg.get('default_scope') or 'mmengine')
        model = load_features(cfg, args.checkpoint, args.with_neck)
        in_channels = cfg.model.backbone.get('in_channels', 3)
        export_onnx(model, args.out, in_channels)
        try:
            difference = check_onnx(model, args.out, in_channels)
            verdict = f'equals the model within {difference:.1e} in ONNX Runtime, at ' + ', '.join(
                f'{n}x{in_channels}x{h}x{w}' for n, h, w in CHECKED_SHAPES
            )
        except ImportError:
            verdict = f'not checked: onnxruntime is not installed ({INSTALL})'
        except UserError:
            args.out.unlink()  # nobody shall use it
            raise
        print(
            f'{args.out}: {"backbone and neck" if args.with_neck else "backbone"}, '
            f'{args.out.stat().st_size / 2**20:.1f} MiB, {verdict}'
        )


if __name__ == '__main__':
    main()
