"""Check configs and data before a model is built.

``check.py`` is the entry: what a config says is checked first (``config.py``), then each split: annotations
(``coco.py``), images (``images.py``) and label maps (``label_maps.py``).
"""
