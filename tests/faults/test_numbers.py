"""Kinds 0, 17, F10 and F14: NaN and infinite numbers, through the real tools."""

import json
import math

import pytest
import torch


def checkpoints(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
@pytest.mark.parametrize('at', [1, 8])
def test_bad_loss_stops(value, at, train, tmp_path):
    outcome = train(change=[f'model.bad_at={at}', f'model.bad_value={value}'])
    assert outcome.status == 1 and 'Traceback' not in outcome.text
    assert f'loss is {value} at iteration {at}, images: image_' in outcome.error
    assert json.loads((tmp_path / 'work/nonfinite_steps.json').read_text())[0]['iteration'] == at
    assert checkpoints(tmp_path / 'work') == ([] if at == 1 else ['epoch_1.pth'])


def test_bad_pixel_names_its_file(train, tmp_path):
    outcome = train(change=['train_dataloader.dataset.bad=[7]'])
    assert outcome.status == 1 and 'image_7.jpg' in outcome.error
    assert 'image_7.jpg' in json.loads((tmp_path / 'work/nonfinite_steps.json').read_text())[0]['files']


def test_diverging_rate_stops(train, tmp_path):
    outcome = train(change=['optim_wrapper.optimizer.lr=1e37', 'train_cfg.max_epochs=20'])
    assert outcome.status == 1 and 'at iteration' in outcome.error
    for name in checkpoints(tmp_path / 'work'):
        state = torch.load(tmp_path / 'work' / name, weights_only=False)['state_dict']
        assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize('allowed, status', [(0, 1), (1, 0)])
def test_skip_nonfinite(allowed, status, train, tmp_path):
    outcome = train('--skip-nonfinite', allowed, change=['model.bad_at=4'])
    assert outcome.status == status
    assert ('skipped a step, 1 of at most 1 in a row: loss is nan at iteration 4' in outcome.text) == (status == 0)
    assert checkpoints(tmp_path / 'work') == ([] if status else ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'])


def test_negative_number_of_steps_to_skip(train):
    assert 'the number of steps to skip is -1' in train('--skip-nonfinite', -1).error


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('way', ['test', 'resume', 'load_from'])
def test_bad_weights_are_refused(way, value, trained, train, test_tool, tmp_path):
    checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=False)
    checkpoint['state_dict']['head.weight'][0, 0] = value
    bad = tmp_path / 'bad.pth'
    torch.save(checkpoint, bad)
    if way == 'test':
        outcome = test_tool(bad)
        assert not (tmp_path / 'tested/metrics.json').exists()
    elif way == 'resume':
        outcome = train('--resume', bad)
    else:
        outcome = train(change=[f'load_from={bad}'])
    assert outcome.status == 1 and 'Traceback' not in outcome.text
    assert f'the checkpoint {bad} has NaN or infinite numbers in 1 of its ' in outcome.error
    assert '(head.weight)' in outcome.error and not checkpoints(tmp_path / 'work')


def test_bad_state_of_the_optimizer_is_not_resumed(trained, train, tmp_path):
    checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=False)
    checkpoint['optimizer']['state'][0]['exp_avg'][0] = math.nan
    torch.save(checkpoint, tmp_path / 'bad.pth')
    outcome = train('--resume', tmp_path / 'bad.pth')
    assert outcome.status == 1 and '(0.exp_avg)' in outcome.error


def test_layer_that_computes_nan_is_named(trained, test_tool):
    """Finite weights: the test would say that nothing was found."""
    outcome = test_tool(trained / 'epoch_1.pth', change=['model.bad_feature=True'])
    assert outcome.status == 1 and 'the layer head computes NaN or infinite numbers for image_0.jpg' in outcome.error


@pytest.mark.parametrize('score', ['nan', 'inf'])
def test_metrics_are_json_and_nan_is_no_best(score, train, tmp_path):
    outcome = train(
        change=[
            f'val_evaluator.scores=[0.25,0.5,{score}]',
            'default_hooks.checkpoint.save_best=score',
            'default_hooks.checkpoint.rule=greater' if score == 'nan' else 'default_hooks.checkpoint.rule=less',
        ]
    )
    assert outcome.status == 0
    text = (tmp_path / 'work/metrics.json').read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {'score': None}
    assert 'not defined, null in metrics.json: score' in outcome.text
    best = 'best_score_epoch_2.pth' if score == 'nan' else 'best_score_epoch_1.pth'
    assert [name for name in checkpoints(tmp_path / 'work') if 'best' in name] == [best]
