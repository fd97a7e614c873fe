"""Numbers that are not finite stop a training before they reach a weight."""

import json
import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from toy_training import ToyModel, images, toy_runner

from convnext_dense import UserError
from convnext_dense.engine.finite import FiniteModelHook, FiniteStepsHook, losses_of, nonfinite_names

NAN, INF = math.nan, math.inf


class KeepStates(Hook):
    """Copies the model before each iteration, and the losses after it."""

    def __init__(self):
        self.states, self.losses = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.states.append({name: value.clone() for name, value in runner.model.state_dict().items()})

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


class BadGradient(ToyModel):
    """Its losses are finite, the gradient of one bias is not, at one iteration."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.calls, self.at = 0, at
        self.conv.bias.register_hook(lambda gradient: gradient * value if self.calls == self.at else gradient)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.calls += mode == 'loss'
        return super().forward(inputs, data_samples, mode)


def bad_images(value, *numbers):
    rows = images()
    for number in numbers:
        rows[number][1][0, 3, 3] = value
    return rows


def equal_states(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items() if 'num_batches' not in name)


@pytest.mark.parametrize('value', [NAN, INF, -INF])
def test_bad_pixel_stops_before_the_step(value, tmp_path):
    runner = toy_runner(tmp_path, bad_images(value, 5))  # of the third batch
    kept = KeepStates()
    runner.register_hook(kept)
    runner.register_hook(FiniteStepsHook())
    with pytest.raises(
        UserError, match=r'loss_square is nan.* at iteration 3, images: image_4.jpg, image_5.jpg \('
    ) as stop:
        runner.train()
    assert '--skip-nonfinite N' in str(stop.value)
    parameters = dict(runner.model.named_parameters())
    assert equal_states(parameters, kept.states[2])
    (record,) = json.loads((tmp_path / 'nonfinite_steps.json').read_text())
    assert record['iteration'] == 3 and record['files'] == ['image_4.jpg', 'image_5.jpg']
    assert set(record['losses']) == {'loss_square', 'loss_parts'} and 'conv.weight' in record['gradients']


@pytest.mark.parametrize('value', [NAN, INF])
def test_bad_gradient_of_a_finite_loss_stops(value, tmp_path):
    runner = toy_runner(tmp_path, model=BadGradient(at=2, value=value))
    runner.register_hook(FiniteStepsHook())
    with pytest.raises(UserError, match=r'the gradients of 1 parameters .*\(conv.bias, ...\) at iteration 2'):
        runner.train()
    assert nonfinite_names(runner.model.state_dict()) == []
    assert json.loads((tmp_path / 'nonfinite_steps.json').read_text())[0]['gradients'] == ['conv.bias']


def test_skipped_step_changes_nothing(tmp_path):
    """Weights, running statistics and the optimizer's state are as if the batch had not been there."""
    runner = toy_runner(tmp_path, bad_images(NAN, 4))
    kept = KeepStates()
    runner.register_hook(kept)
    runner.register_hook(FiniteStepsHook(max_skipped=1))
    runner.train()
    assert math.isnan(kept.losses[2]) and math.isfinite(kept.losses[3]) and len(kept.losses) == 8
    assert equal_states(kept.states[2], kept.states[3])
    assert [record['iteration'] for record in json.loads((tmp_path / 'nonfinite_steps.json').read_text())] == [3, 7]
    without = toy_runner(tmp_path / 'without', [row for row in images() if row[0] not in (4, 5)])
    without.train()
    assert equal_states(runner.model.state_dict(), without.model.state_dict())


@pytest.mark.parametrize('allowed, in_a_row, stops', [(1, 2, True), (2, 2, False), (2, 3, True), (0, 1, True)])
def test_skipped_steps_are_counted_in_a_row(allowed, in_a_row, stops, tmp_path):
    runner = toy_runner(
        tmp_path, bad_images(NAN, *range(0, 2 * in_a_row, 2)), train_cfg=dict(by_epoch=True, max_epochs=1)
    )
    runner.register_hook(FiniteStepsHook(allowed))
    if stops:
        with pytest.raises(UserError, match=f'at iteration {allowed + 1}, images'):
            runner.train()
    else:
        runner.train()
        assert runner.iter == 4


def test_accumulated_gradients_name_the_bad_batch(tmp_path):
    runner = toy_runner(
        tmp_path,
        bad_images(NAN, 2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01), accumulative_counts=4),
    )
    runner.register_hook(FiniteStepsHook())
    with pytest.raises(UserError, match='images: image_2.jpg, image_3.jpg'):
        runner.train()


class ScaledOptimWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper with the loss scaler that torch has for CPUs; that one wants a GPU."""

    def __init__(self, scale: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale, growth_interval=1000)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()


def scaled_runner(tmp_path, rows, fused, scale=2.0**126):
    runner = toy_runner(tmp_path, rows, train_cfg=dict(by_epoch=True, max_epochs=4))
    optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.01, fused=fused)
    runner.optim_wrapper = ScaledOptimWrapper(scale, optimizer=optimizer)
    runner.register_hook(FiniteStepsHook())
    return runner


@pytest.mark.parametrize('fused', [False, True])
def test_steps_that_a_loss_scaler_skips_do_not_count(fused, tmp_path):
    rows = [(number, 1e3 * image) for number, image in images()]
    runner = scaled_runner(tmp_path, rows, fused)
    runner.train()
    assert runner.iter == 16 and runner.optim_wrapper.loss_scaler.get_scale() < 2.0**126, 'none was skipped'
    assert not (tmp_path / 'nonfinite_steps.json').exists()


@pytest.mark.parametrize('fused', [False, True])
def test_bad_loss_counts_under_a_loss_scaler(fused, tmp_path):
    with pytest.raises(UserError, match='loss_square is nan'):
        scaled_runner(tmp_path, bad_images(NAN, 3), fused, scale=2.0).train()


def test_clean_training_is_the_same_with_the_hooks(tmp_path):
    losses = []
    for hooks in ([], [FiniteStepsHook(), FiniteModelHook()], [FiniteStepsHook(3)]):
        runner = toy_runner(tmp_path, images(48), dropout=0.5, train_cfg=dict(by_epoch=True, max_epochs=1))
        kept = KeepStates()
        for hook in (kept, *hooks):
            runner.register_hook(hook)
        runner.train()
        losses.append(kept.losses)
    assert len(losses[0]) == 24 and losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize('place', ['conv.weight', 'norm.running_mean'])
@pytest.mark.parametrize('value', [NAN, INF])
def test_bad_weights_are_not_trained_saved_or_loaded(place, value, tmp_path):
    toy_runner(tmp_path / 'good', train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    checkpoint = torch.load(tmp_path / 'good/epoch_1.pth', weights_only=False)
    checkpoint['state_dict'][place].flatten()[0] = value
    torch.save(checkpoint, tmp_path / 'bad.pth')
    for resume in (False, True):
        runner = toy_runner(tmp_path / 'work', load_from=str(tmp_path / 'bad.pth'), resume=resume)
        runner.register_hook(FiniteModelHook())
        with pytest.raises(UserError, match=f'checkpoint {tmp_path}/bad.pth has NaN .* 1 of .* tensors \\({place}\\)'):
            runner.train()
    runner = toy_runner(tmp_path / 'work')
    runner.model.state_dict()[place].flatten()[0] = value
    runner.register_hook(FiniteModelHook())
    with pytest.raises(UserError, match='the model to save has NaN'):
        runner.train()
    assert not list((tmp_path / 'work').glob('*.pth'))
    runner = toy_runner(tmp_path / 'work')
    runner.model.state_dict()[place].flatten()[0] = value
    runner.register_hook(FiniteStepsHook())
    with pytest.raises(UserError, match='the model to train has NaN'):
        runner.train()


def test_losses_are_those_that_mmengine_sums():
    one, two = torch.tensor([1.0, 3.0]), torch.tensor(5.0)
    output = {'loss_a': one, 'loss_b': [one, two], 'acc': torch.tensor(NAN), 'decode.loss_ce': two, 'loss_none': []}
    assert {name: float(value) for name, value in losses_of(output).items()} == {
        'loss_a': 2.0,
        'loss_b': 7.0,
        'decode.loss_ce': 5.0,
    }
    total, _ = ToyModel().parse_losses({name: value for name, value in output.items() if name != 'loss_none'})
    assert float(total) == 14.0
