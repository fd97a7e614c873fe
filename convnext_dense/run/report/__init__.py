"""A page about a training: what ``tools/report.py`` does.

``work_dir.py`` reads what a run has left behind, ``detection.py`` and ``segmentation.py`` measure its predictions, and
``page.py`` draws.
"""
