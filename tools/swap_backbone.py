"""Put ConvNeXt under a config: python tools/swap_backbone.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py -o OUT.py"""

from pathlib import Path

from _arguments import add_overwrite, argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        'config',
        metavar='IN_CONFIG',
        help='config of mmdet, mmseg or another toolkit on mmengine: a '
        'path, or mmdet::… for one of an installed toolkit',
    )
    parser.add_argument(
        '-o',
        '--out',
        metavar='OUT.py',
        type=Path,
        required=True,
        help='config to write; it inherits from IN_CONFIG and holds the difference',
    )
    parser.add_argument(
        '--arch',
        type=str.lower,
        help='such as base; default that of the weights or of a ConvNeXt that is there, else tiny',
    )
    parser.add_argument(
        '--weights',
        help='for the backbone: path, URL, hf-hub:org/name, timm:name or the short name '
        'of an official file such as convnext_tiny_1k_224',
    )
    parser.add_argument(
        '--recipe',
        action='store_true',
        help='also set AdamW, layer decay, drop path and mixed precision as the official recipes do',
    )
    add_overwrite(parser, 'OUT.py if it exists')
    args = parser.parse_args()

    from convnext_dense.outputs import check_file_output
    from convnext_dense.run.options import errors_as_sentences
    from convnext_dense.swap.diff import differences, table
    from convnext_dense.swap.files import write_config
    from convnext_dense.swap.swap import swap_config

    with errors_as_sentences():
        check_file_output(args.out, inputs=[args.config], overwrite=args.overwrite)
        swapped = swap_config(args.config, args.arch, args.weights, args.recipe)
        write_config(swapped.source, swapped.before, swapped.after, args.out)
        print(table(differences(swapped.before.to_dict(), swapped.after.to_dict()), swapped.notes))
        print(f'\nwritten to {args.out}')


if __name__ == '__main__':
    main()
