"""Sphinx configuration of the documentation: ``make docs``. Building needs no network."""

import io
import os
import re
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
html_static_path = ['_static']
html_css_files = ['site.css']

myst_enable_extensions = ['deflist']
myst_heading_anchors = 3

autodoc_typehints = 'none'
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# Other people's packages: their pages cannot be had without a network.
nitpick_ignore_regex = [(r'py:.*', r'(torch|mmengine|numpy|np|collections|pathlib|typing)\b.*')]

# Pages about the project, which run nothing.
PROJECT_PAGES = ('index', 'contributing', 'changelog', 'licences')
PINS = dict(re.findall(r'^([\w-]+)==([^\s;]+)', (ROOT / 'constraints.txt').read_text(), re.M))
RUN_WITH = 'Run with {} on Linux and x86-64 CPUs.'.format(
    ', '.join(f'{name} {PINS[name]}' for name in ('torch', 'mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation'))
)


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


def name_versions(app: Sphinx, page: str, source: list[str]) -> None:
    """End every page with what it was run on, in addition to what the page itself says about that.

    Measured pages name their own machine and versions.
    """
    if page not in PROJECT_PAGES and not page.startswith('benchmarks/'):
        source[0] += f'\n\n*{RUN_WITH}*\n'


def setup(app: Sphinx) -> None:
    app.connect('source-read', name_versions)
    app.add_directive('command-line', CommandLine)
