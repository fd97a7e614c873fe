# Mask2Former on ADE20K semantic segmentation, 160k iterations on crops of 512: mmseg's config of Swin-T, as that of
# Mask2Former's authors (arXiv 2112.01527), with the backbone that tools/swap_backbone.py
# writes. mmseg trains in fp32, the authors in mixed precision (--amp).
_base_ = __import__('convnext_dense') and 'mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmdet.models', 'convnext_dense'], allow_failed_imports=False)
custom_hooks = [dict(type='ConvNeXtLoadHook')]
# $CONVNEXT_DENSE_DATA is the folder that holds ade/ (and coco/); --cfg-options data_root=... moves this one alone.
data_root = '{{$CONVNEXT_DENSE_DATA:data}}/ade/ADEChallengeData2016'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
model = dict(
    # Drop path: that of Swin-T. Layer scale: that of ConvNeXt's dense recipes.
    backbone=dict(_delete_=True, type='ConvNeXt', arch='tiny', drop_path_rate=0.3, layer_scale_init_value=1.),
    decode_head=dict(in_channels=[96, 192, 384, 768]))
# A tenth of the rate for the backbone, no weight decay on norms and embeddings, as for Swin-T. The norms of ConvNeXt
# are named one by one: mmengine's constructor takes the longest key, and no norm_decay_mult where there is one.
norms = [f'stages.{stage}.{block}.norm' for stage, depth in enumerate((3, 3, 9, 3)) for block in range(depth)]
norms += ['norm', 'downsample_layers.0.1', *(f'downsample_layers.{stage}.0' for stage in (1, 2, 3))]
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.),
            **{f'backbone.{norm}': dict(lr_mult=0.1, decay_mult=0.) for norm in norms},
            **dict.fromkeys(('query_embed', 'query_feat', 'level_embed'), dict(lr_mult=1., decay_mult=0.))),
        norm_decay_mult=0.))
