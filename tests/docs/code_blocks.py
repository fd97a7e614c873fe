"""The code blocks of the pages, and the commands in them.

A block of ```` ```bash ```` or ```` ```python ```` runs as it is printed, unless a comment on the line before it says
otherwise::

    <!-- slow -->                  more than 20 s: make test-docs runs it
    <!-- needs: COCO, a GPU -->    not run; its options, files, extras and make targets are checked
    <!-- excerpt -->               no program of its own

The cells of a notebook run together, by test_notebooks.py.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

PAGES = (
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted((ROOT / 'docs').rglob('*.md')),
    *sorted((ROOT / 'examples').rglob('*.md')),
)
BLOCK = re.compile(r'(?:^<!-- (?P<mark>[^>\n]+) -->\n)?^```(?P<language>bash|python)\n(?P<code>.*?)^```', re.M | re.S)
NEEDS = ('COCO', 'ADE20K', 'a GPU', 'a network', 'slurm', 'a quiet machine', 'openmim')


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        name: Page and line of its first line of code.
        language: 'bash' or 'python'.
        code: As printed.
        mark: Of the comment before it, or ''.
    """

    name: str
    language: str
    code: str
    mark: str

    @property
    def needs(self) -> list[str]:
        """What the machine of the tests does not have."""
        return self.mark.removeprefix('needs: ').split(', ') if self.mark.startswith('needs: ') else []

    @property
    def is_run(self) -> bool:
        return self.mark in ('', 'slow')


def find_blocks() -> list[Block]:
    """Return the blocks of all pages. The configs that test_readme.py trains are left out."""
    blocks = []
    for page in PAGES:
        text = page.read_text()
        if '_build' in page.parts:
            continue
        notebook = 'notebook' if page.parent.name == 'notebooks' else ''
        for match in BLOCK.finditer(text):
            if re.match(r'# \w+\.py: ', match['code']):
                continue
            line = text.count('\n', 0, match.start('code')) + 1
            blocks.append(
                Block(f'{page.relative_to(ROOT)}:{line}', match['language'], match['code'], match['mark'] or notebook)
            )
    return blocks


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        variables: What it sets in the environment, of the block if there are no words.
        words: The command and its arguments.
    """

    variables: dict[str, str]
    words: list[str]


def commands_of(code: str, values: dict[str, str], with_options: bool) -> list[Command]:
    """Return the commands of a block of bash.

    Args:
        code: Lines without pipes, quotes over several lines or control flow.
        values: What to write for a placeholder such as CONFIG.
        with_options: Keep what is in square brackets, which the reader may leave out.
    """
    commands = []
    for line in code.replace('\\\n', ' ').replace('…', '').replace('...', '').splitlines():
        if not with_options:
            line = re.sub(r' \[[^\]]*\]', '', line)
        words = [values.get(word, word) for word in shlex.split(_without_brackets(line), comments=True)]
        variables = {}
        if words[:1] == ['export']:
            words = words[1:]
        while words and re.match(r'[A-Z_]+=', words[0]):
            name, _, value = words.pop(0).partition('=')
            variables[name] = value
        if words or variables:
            commands.append(Command(variables, words))
    return commands


def _without_brackets(line: str) -> str:
    """Write ``[--amp]`` as ``--amp``, but keep ``'.[extra]'`` and ``KEY=[1,2]``."""
    return re.sub(r'(?<= )\[([^\]]*)\]', r'\1', line)


def program_of(words: list[str], subcommands: dict[str, str]) -> tuple[str, list[str]] | None:
    """Return the Python file of this repository that a command runs, and its arguments; None for other commands.

    Args:
        words: Of the command.
        subcommands: Files in ``tools/`` by subcommand of ``convnext-dense``.
    """
    if words[0] == 'convnext-dense':
        return f'tools/{subcommands[words[1]]}', words[2:]
    if words[:2] == ['python', '-m']:
        module = Path(*words[2].split('.'))
        return str(module / '__main__.py' if (ROOT / module).is_dir() else module.with_suffix('.py')), words[3:]
    if words[0] == 'python':
        return words[1], words[2:]
    return None
