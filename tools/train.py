"""Train a detector or segmentor: python tools/train.py configs/cascade_mask_rcnn/convnext_b_3x_coco.py"""

from _arguments import add_config, add_run, argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    add_config(parser)
    add_run(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision (the official recipes have it already)')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate linearly with the batch over all GPUs'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint; without a path, from the last one in the work folder',
    )
    parser.add_argument(
        '--track',
        nargs='+',
        default=[],
        metavar='TRACKER',
        help='also follow the run in tensorboard, mlflow, wandb, clearml, neptune, dvclive or aim',
    )
    args = parser.parse_args()

    from convnext_dense.run.options import errors_as_sentences
    from convnext_dense.run.train_test import train

    with errors_as_sentences():
        train(**vars(args))


if __name__ == '__main__':
    main()
