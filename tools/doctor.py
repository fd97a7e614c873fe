"""Find out what would make a training fail: python tools/doctor.py [CONFIG]

Without a config: packages, GPU, memory and folders. With one also its data, weights, model, memory and disk. Exits with
status 1 if there is a problem.
"""

import importlib.util
import sys
import types

from _arguments import add_cfg_options, add_data_check, add_work_dir, argument_parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument('config', nargs='?', help='config file of a training')
    add_cfg_options(parser)
    add_work_dir(parser)
    add_data_check(parser)
    parser.add_argument('--json', dest='as_json', action='store_true', help='print one JSON object')
    args = parser.parse_args()

    _put_bare_package()
    from convnext_dense.run.doctor.doctor import doctor

    sys.exit(doctor(**vars(args)))


def _put_bare_package() -> None:
    """Make the modules of convnext_dense known without importing it, which takes seconds and may fail.

    Raises:
        SystemExit: There is no such package.
    """
    if 'convnext_dense' in sys.modules:
        return
    found = importlib.util.find_spec('convnext_dense')
    if found is None or found.submodule_search_locations is None:
        sys.exit('error: convnext_dense is not installed for this Python: pip install convnext-dense')
    bare = types.ModuleType('convnext_dense')
    bare.__path__ = list(found.submodule_search_locations)
    sys.modules['convnext_dense'] = bare


if __name__ == '__main__':
    main()
