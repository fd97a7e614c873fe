"""Labelled images of a user: read from the formats of labelling tools, split, and written in the layouts of the README.

Start with ``records.py``, what every reader returns and every writer takes; then one file per format.
"""
