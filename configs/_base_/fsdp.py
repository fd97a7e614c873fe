# Parameters, gradients and optimizer state split over all processes, a unit a block, for models that are too large for
# one GPU: a second _base_ beside a recipe. Needs several processes: tools/dist_train.sh.
runner_type = 'FlexibleRunner'
strategy = dict(type='ConvNeXtFSDPStrategy')
