"""Run a script as ``python PATH ARGS`` does, with this package imported first and the path made absolute.

For scripts that import ``mmcv.ops`` before their config imports this package, such as the toolkits' own ``test.py``:
``python -m convnext_dense.run_script PATH ARGS``. torchrun takes it as ``torchrun -m convnext_dense.run_script``.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from convnext_dense.mmcv_ops import install


def main() -> None:
    """Run the script that the command line names.

    Raises:
        SystemExit: No script is named, or there is none; or the script raises it.
    """
    if len(sys.argv) < 2:
        sys.exit('usage: python -m convnext_dense.run_script PATH [ARGS]')
    path = Path(sys.argv[1])
    if not path.is_file():
        sys.exit(f'error: {path} is no script')
    install()
    sys.argv = [str(path.absolute()), *sys.argv[2:]]
    # What stood there is the folder from which -m was called.
    sys.path[0] = str(path.resolve().parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
