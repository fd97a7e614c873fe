"""Every operator that mmdet or mmseg uses is provided, or left out with a reason."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from convnext_dense.errors import UserError
from convnext_dense.mmcv_ops.extension import OPERATORS

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

# Operator: why it is left out.
LEFT_OUT = {
    'line_nms_forward': 'only CLRNet of onedl-mmdetection predicts lanes with it; mmcv has a kernel for GPUs alone'
}
# What mmcv's own files need to be imported at all, beyond operators.
OTHER = {'get_compiler_version', 'get_compiling_cuda_version', 'bbox_overlaps'}


def folder_of(package: str) -> Path:
    """Where the package lies, without importing it."""
    return Path(find_spec(package).origin).parent


def names_in(text: str) -> set[str]:
    """What a file imports from ``mmcv.ops`` or a file of it, and the strings that it gives as types."""
    names = set(re.findall(r"""type=['"](\w+)['"]|['"]type['"]: ['"](\w+)['"]""", text))
    names = {name for pair in names for name in pair}
    for listed in re.findall(r'from mmcv\.ops[\w.]* import (\([^)]*\)|[^\n]*)', text):
        names.update(re.findall(r'\w+', listed))
    return names


def definitions() -> tuple[dict[str, ast.AST], dict[str, str]]:
    """What the files of ``mmcv.ops`` define at their top level, and classes by the name under which they register."""
    defined, registered = {}, {}
    for path in (folder_of('mmcv') / 'ops').glob('*.py'):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign):
                defined.update((target.id, node) for target in node.targets if isinstance(target, ast.Name))
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            defined[node.name] = node
            for decorator in node.decorator_list:
                texts = [leaf.value for leaf in ast.walk(decorator) if isinstance(leaf, ast.Constant)]
                if 'register_module' in ast.dump(decorator):
                    registered.update((text, node.name) for text in [*texts, node.name] if isinstance(text, str))
    del defined['ext_module']
    return defined, registered


def extension_names(name: str, defined: dict[str, ast.AST], seen: set[str]) -> set[str]:
    """Operators that a definition calls, itself or through other definitions."""
    if name in seen or name not in defined:
        return set()
    seen.add(name)
    called = set()
    for node in ast.walk(defined[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'ext_module':
            called.add(node.attr)
        elif isinstance(node, ast.Name):
            called |= extension_names(node.id, defined, seen)
    return called


def used_operators() -> dict[str, set[str]]:
    """For each name of ``mmcv.ops`` that the toolkits import or their configs build, its operators."""
    defined, registered = definitions()
    used = {}
    for toolkit in ('mmdet', 'mmseg'):
        for path in folder_of(toolkit).rglob('*.py'):
            for name in names_in(path.read_text()):
                name = registered.get(name, name)
                operators = extension_names(name, defined, set())
                if operators:
                    used[name] = operators
    # mmengine turns MMSyncBN into BN, and gives DCN layers a learning rate of their own.
    for name in ('SyncBatchNorm', 'DeformConv2d', 'ModulatedDeformConv2d'):
        used[name] = extension_names(name, defined, set())
    return used


USED = used_operators()


@pytest.mark.parametrize('name', sorted(USED))
def test_used_operators_are_provided(name):
    assert USED[name] - set(LEFT_OUT) <= set(OPERATORS)


def test_the_scan_finds_what_is_known_to_be_used():
    assert {
        'CARAFEPack',
        'DeformConv2d',
        'DeformConv2dPack',
        'MaskedConv2d',
        'ModulatedDeformConv2d',
        'ModulatedDeformConv2dPack',
        'MultiScaleDeformableAttention',
        'PSAMask',
        'RoIAlign',
        'RoIPool',
        'SAConv2d',
        'SyncBatchNorm',
        'nms',
        'nms_match',
        'sigmoid_focal_loss',
        'soft_nms',
    } <= set(USED)
    assert USED['MaskedConv2d'] == {'masked_im2col_forward', 'masked_col2im_forward'}
    assert USED['nms'] == {'nms'}


def test_no_operator_is_provided_without_a_use():
    """Beyond the scan: the other halves of those found, which mmcv.ops offers in the same file."""
    siblings = {
        'carafe_naive_backward',
        'carafe_naive_forward',
        'deform_roi_pool_backward',
        'deform_roi_pool_forward',
        'softmax_focal_loss_backward',
        'softmax_focal_loss_forward',
    }
    assert set(OPERATORS) == set().union(*USED.values()) - set(LEFT_OUT) | siblings | OTHER


@pytest.mark.parametrize('name', ['nms_rotated', 'line_nms_forward', 'upfirdn2d'])
def test_an_operator_that_is_left_out_names_itself_and_the_way_out(extension, name):
    assert hasattr(extension, name)
    with pytest.raises(UserError) as caught:
        getattr(extension, name)(1, keyword=2)
    assert str(caught.value) == (
        f'the operator {name} exists only in a compiled mmcv: build mmcv with '
        '`make MMCV=build install`, or with `python tools/install_mmcv.py`'
    )


def test_private_names_are_no_operators(extension):
    assert not hasattr(extension, '__wrapped__')
