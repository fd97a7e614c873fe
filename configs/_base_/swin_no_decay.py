# No weight decay on position tables and norms, as in the code of Swin's authors.
swin_no_decay = dict(
    custom_keys=dict(
        absolute_pos_embed=dict(decay_mult=0.),
        relative_position_bias_table=dict(decay_mult=0.),
        norm=dict(decay_mult=0.)))
