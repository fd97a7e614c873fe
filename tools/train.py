"""Train a detector or segmentor: python tools/train.py configs/cascade_mask_rcnn/convnext_b_3x_coco.py"""

from convnext_dense.run.options import common_arguments, errors_as_sentences
from convnext_dense.run.train_test import train


def main() -> None:
    parser = common_arguments(__doc__.split(':')[0])
    parser.add_argument('--amp', action='store_true', help='mixed precision (the official recipes have it already)')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate linearly with the batch over all GPUs'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a path, from the last one in the work folder',
    )
    with errors_as_sentences():
        train(parser.parse_args())


if __name__ == '__main__':
    main()
