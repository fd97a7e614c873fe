"""Convert ConvNeXt weights: python tools/convert_checkpoint.py IN OUT --to timm, or IN --inspect"""

from pathlib import Path

from _arguments import add_overwrite, argument_parser

FORMATS = ('ours', 'official', 'timm', 'timm_conv', 'torchvision', 'hf', 'mmpretrain')


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        'source',
        metavar='IN',
        help='path, URL, hf-hub:org/name, timm:name or the short name of an official file, in any format',
    )
    parser.add_argument('out', metavar='OUT', nargs='?', help='file to write; ends in .safetensors for that format')
    parser.add_argument('--to', choices=FORMATS, help='format to write; the backbone alone is written')
    parser.add_argument('--inspect', action='store_true', help='only say what is in the file and what would load')
    parser.add_argument('--prefix', help='which ConvNeXt, where the file has several, such as model_ema.')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let a pickle execute code: only for files whose author you trust',
    )
    add_overwrite(parser, 'OUT if it exists')
    args = parser.parse_args()

    from convnext_dense.convert import convert, inspect
    from convnext_dense.errors import UserError
    from convnext_dense.run.options import errors_as_sentences

    with errors_as_sentences():
        if args.inspect:
            print(inspect(args.source, args.prefix, args.trust_checkpoint))
        elif not args.out or not args.to:
            raise UserError('give the file to write and its format, as in IN OUT --to ours, or IN --inspect')
        else:
            out = Path(args.out)
            print(convert(args.source, out, args.to, args.prefix, args.trust_checkpoint, args.overwrite))


if __name__ == '__main__':
    main()
