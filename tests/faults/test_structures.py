"""Kinds 12 and 16: every field of a checkpoint gone or of another type, and pickles with code."""

import copy
import math
import os
import pickle
import re

import numpy as np
import pytest
import torch
from forked import run_forked

from convnext_dense.errors import UserError
from convnext_dense.weights.safe_reading import called_names, read_file
from convnext_dense.weights.sources import check_structure

# A value of another kind for each field, and what a test says; None: a test does not need it.
FIELDS = {
    'meta': ([1], 'its meta is a list'),
    'state_dict': ([1], 'its state_dict is a list'),
    'message_hub': ([1], None),
    'optimizer': ('text', None),
    'param_schedulers': (3, None),
    'random_states': ('text', None),
}
WHOLE = {
    'a list': ([1], 'it holds a list'),
    'a text': ('text', 'it holds a str'),
    'a number': (3, 'it holds a int'),
    'None': (None, 'it holds a NoneType'),
    'a tensor': (torch.zeros(1), 'it holds a Tensor'),
    'an empty dict': ({}, 'lacks 8 tensors of the model'),
    'numbers as names': ({'state_dict': {3: torch.zeros(1)}}, 'it has the name 3, which is a int'),
    'pairs as names': ({'state_dict': {('a', 'b'): torch.zeros(1)}}, "it has the name ('a', 'b'), which is a tuple"),
    'texts as tensors': ({'state_dict': {'conv.weight': 'text'}}, 'lacks 8 tensors of the model'),
}


@pytest.mark.parametrize('kind', WHOLE)
def test_odd_content_is_a_sentence(kind, test_tool, tmp_path):
    content, sentence = WHOLE[kind]
    torch.save(content, tmp_path / 'odd.pth')
    outcome = test_tool(tmp_path / 'odd.pth')
    assert outcome.status == 1 and 'Traceback' not in outcome.text and sentence in outcome.error


@pytest.mark.parametrize('change', ['another type', 'gone', 'None'])
@pytest.mark.parametrize('field', FIELDS)
def test_every_field_of_a_checkpoint(field, change, trained, train, test_tool, tmp_path):
    """A test needs the weights alone; a training that is resumed needs all that was saved."""
    checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=False)
    value, sentence = FIELDS[field]
    if change == 'gone':
        del checkpoint[field]
    else:
        checkpoint[field] = value if change == 'another type' else None
    torch.save(checkpoint, tmp_path / 'odd.pth')
    tested = test_tool(tmp_path / 'odd.pth')
    if field == 'state_dict' or (sentence and change == 'another type'):
        assert tested.status == 1 and 'Traceback' not in tested.text
        if change == 'another type':
            assert sentence in tested.error
    else:
        assert tested.status == 0, tested.text
    resumed = train('--resume', tmp_path / 'odd.pth')
    assert 'Traceback' not in resumed.text
    if field == 'random_states':
        return  # says that random numbers start anew, or refuses
    assert resumed.status == 1 and re.search('is not a checkpoint of a|lacks', resumed.error)


META = {
    'epoch': ('one', None, -1, 1.5, True),
    'iter': ('one', None, -1, 1.5),
    'seed': (None,),
    'dataset_meta': ([1], 'x'),
}


@pytest.mark.parametrize('field, value', [(field, value) for field, values in META.items() for value in values])
def test_every_field_of_meta(field, value, trained, train, test_tool, tmp_path):
    checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=False)
    checkpoint['meta'][field] = value
    torch.save(checkpoint, tmp_path / 'odd.pth')
    assert test_tool(tmp_path / 'odd.pth').status == 0
    if field in ('epoch', 'iter'):
        outcome = train('--resume', tmp_path / 'odd.pth')
        assert outcome.status == 1 and f'meta.{field} is ' in outcome.error


class Calls:
    """Unpickled, it calls a function; ``json.loads`` stands for a class that is just not known."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FORMS = {
    'zip': lambda content, path: torch.save(content, path),
    'torch < 1.6': lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    'pickle': lambda content, path: path.write_bytes(pickle.dumps(content)),
    'protocol 2': lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    'function, arguments, name',
    [
        (os.system, ('touch executed',), 'posix.system'),
        (eval, ('open("executed", "w")',), 'builtins.eval'),
        (math.factorial, (3,), 'math.factorial'),
    ],
)
def test_code_is_named_and_not_run(function, arguments, name, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FORMS[form](dict(state_dict=dict(a=torch.zeros(1)), more=Calls(function, *arguments)), tmp_path / 'code.pth')
    with pytest.raises(UserError) as refused:
        read_file(tmp_path / 'code.pth')
    text = str(refused.value)
    name = name.replace('builtins', '__builtin__') if form != 'pickle' else name
    assert 'holds code, not only tensors (a pickle that calls ' in text and 'damaged' not in text
    assert name in text
    assert not (tmp_path / 'executed').exists()


def test_tensors_arrays_and_logs_call_nothing():
    plain = dict(weight=torch.zeros(2), array=np.zeros(2), number=np.float64(1), text='os system')
    for protocol in range(2, 6):
        assert called_names(pickle.dumps(dict(array=plain['array'], number=plain['number']), protocol)) == ''
    check_structure(dict(state_dict=copy.deepcopy(plain)), 'x.pth')


@pytest.mark.slow
def test_predict_and_export_say_the_same(tmp_path):
    from helpers import ROOT

    torch.save({'state_dict': [1]}, tmp_path / 'odd.pth')
    (tmp_path / 'image.jpg').touch()
    config = ROOT / 'configs/mask_rcnn/convnext_digits.py'
    for number, arguments in enumerate(
        (
            ('predict', config, tmp_path / 'odd.pth', tmp_path / 'image.jpg', '--out', tmp_path / 'out'),
            ('export', config, tmp_path / 'odd.pth', tmp_path / 'out.onnx', '--part', 'backbone'),
        )
    ):
        outcome = run_forked(*arguments, log=tmp_path / f'{number}.txt')
        assert outcome.status == 1 and 'is not a checkpoint of a model, its state_dict is a list' in outcome.error
