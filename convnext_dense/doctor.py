"""The command ``python -m convnext_dense.doctor``, which is ``convnext-dense doctor``.

Where ``import convnext_dense`` itself fails, only ``convnext-dense doctor`` can say why.
"""

import sys

from convnext_dense.cli import main

if __name__ == '__main__':
    main(['doctor', *sys.argv[1:]])
