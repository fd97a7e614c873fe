"""Sphinx configuration of the documentation: ``make docs``. Building needs no network."""

import os
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import convnext_dense

ROOT = Path(__file__).resolve().parents[1]

project = 'convnext-dense'
author = 'the convnext-dense contributors'
copyright = f'2026, {author}'
release = version = convnext_dense.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = project

myst_enable_extensions = ['deflist']
myst_heading_anchors = 3

autodoc_typehints = 'none'
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# Packages without pages that could be built without a network.
nitpick_ignore_regex = [(r'py:.*', r'(torch|mmengine|numpy|np)\b.*')]


class CommandLine(SphinxDirective):
    """What ``python ARGUMENTS --help`` prints."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        done = subprocess.run(
            [sys.executable, *self.arguments[0].split(), '--help'],
            cwd=ROOT,
            env=dict(os.environ, COLUMNS='100'),
            capture_output=True,
            text=True,
            check=True,
        )
        return [nodes.literal_block(done.stdout, done.stdout, language='text')]


def setup(app: Sphinx) -> None:
    app.add_directive('command-line', CommandLine)
