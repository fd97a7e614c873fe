"""The command ``convnext-dense``: each of its subcommands is a tool of the same arguments.

Imports nothing but the standard library, and is run by its path: ``--help`` answers before torch is imported.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent / '.mim' / 'tools'
# What each subcommand does, and the file in tools/ that does it.
COMMANDS = {
    'dataset': ('dataset.py', 'look into labelled images, convert and split them'),
    'new-config': ('new_config.py', 'write a config for your data'),
    'train': ('train.py', 'train a detector or segmentor'),
    'test': ('test.py', 'test a checkpoint'),
    'predict': ('predict.py', 'detect or segment in images'),
    'report': ('report.py', 'write a page about a training'),
    'export': ('export.py', 'write a model as ONNX or OpenVINO IR'),
    'swap-backbone': ('swap_backbone.py', 'put ConvNeXt under a config'),
    'convert-checkpoint': ('convert_checkpoint.py', 'write weights in another format'),
    'get-flops': ('get_flops.py', 'count parameters and FLOPs'),
    'doctor': ('doctor.py', 'find out what would make a training fail'),
    'demo': ('demo.py', 'train two small models on built-in data'),
}


def main(arguments: list[str]) -> None:
    """Run a subcommand; exit with its status."""
    if not arguments or arguments[0] in ('-h', '--help'):
        print(_usage())
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    if name not in COMMANDS:
        sys.exit(f'error: there is no command {name!r}: use one of {", ".join(COMMANDS)}')
    file, _ = COMMANDS[name]
    sys.argv = [f'convnext-dense {name}', *rest]  # as argparse shows it
    sys.path.insert(0, str(TOOLS))  # as for a script
    importlib.import_module(Path(file).stem).main()


def _usage() -> str:
    lines = ['usage: convnext-dense COMMAND [arguments]', '', 'commands; each has a --help of its own:']
    return '\n'.join(lines + [f'  {name:<20}{summary}' for name, (_, summary) in COMMANDS.items()])


if __name__ == '__main__':
    main(sys.argv[1:])
