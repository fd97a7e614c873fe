"""Sphinx configuration of the documentation: ``make docs``. Building needs no network."""

import io
import os
import runpy
import sys
from contextlib import redirect_stdout, suppress
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


sys.path.insert(0, str(ROOT / 'tools'))  # as for the scripts there
os.environ['COLUMNS'] = '100'  # width of help texts


class CommandLine(SphinxDirective):
    """What ``python ARGUMENTS --help`` prints. It runs in this process, which has imported the package already."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        is_module = self.arguments[0].startswith('-m ')
        name, *options = self.arguments[0].removeprefix('-m ').split()
        before, sys.argv = sys.argv, [Path(name).name, *options, '--help']
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            if is_module:
                runpy.run_module(name, run_name='__main__')
            else:
                runpy.run_path(str(ROOT / name), run_name='__main__')
        sys.argv = before
        return [nodes.literal_block(printed.getvalue(), printed.getvalue(), language='text')]


def setup(app: Sphinx) -> None:
    app.add_directive('command-line', CommandLine)
