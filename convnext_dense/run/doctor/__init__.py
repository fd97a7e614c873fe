"""What ``convnext-dense doctor`` does: find out before a training what would make it fail.

``doctor.py`` has the list of checks and is the entry. ``packages.py`` and ``machine.py`` check what every training
needs, ``training.py`` one config, by the sizes of ``estimate.py``. A check is a function that yields diagnoses.

Nothing here imports torch, mmengine or a toolkit before a check needs it, and ``packages.py`` and ``machine.py`` work
where ``import convnext_dense`` fails.
"""
