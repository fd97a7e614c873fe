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
        help='continue from this checkpoint; without a path, from the newest in the work folder that can be read, or '
        'from the start if there is none',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the checkpoints of an earlier run in the work folder'
    )
    parser.add_argument(
        '--skip-nonfinite',
        type=int,
        default=0,
        metavar='N',
        help='skip up to N steps in a row whose loss or gradients are NaN or infinite; default 0: stop at the first',
    )
    parser.add_argument(
        '--track',
        nargs='+',
        default=[],
        metavar='TRACKER',
        help='also follow the run in tensorboard, mlflow, wandb, clearml, neptune, dvclive or aim',
    )
    parser.add_argument(
        '--no-report',
        dest='report',
        action='store_false',
        help='do not test the best checkpoint at the end and write WORK_DIR/report.html (needs matplotlib)',
    )
    args = parser.parse_args()

    from convnext_dense.run.options import errors_as_sentences
    from convnext_dense.run.train_test import train

    with errors_as_sentences():
        train(**vars(args))


if __name__ == '__main__':
    main()
