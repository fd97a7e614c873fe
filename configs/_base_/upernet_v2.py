# UperNet with a ConvNeXt V2: GRN instead of layer scale (arXiv 2301.00808, section 3.2).
_base_ = 'upernet.py'
model = dict(backbone=dict(use_grn=True, layer_scale_init_value=0.))
