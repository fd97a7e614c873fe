"""Whatever users attach to a block, or run around it, has the effect that it has on the plain block.

The cases are made by looking at what a block consists of and at what torch offers, not listed.
"""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from test_fused_block import MICRO, eager, randomize
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import ConvNeXt
from convnext_dense.models.block import Block, residual_branch
from convnext_dense.models.fusion_rule import PARTS_V1, PARTS_V2

V1 = dict(layer_scale_init_value=0.5)
V2 = dict(layer_scale_init_value=0, use_grn=True)
KINDS = pytest.mark.parametrize('kind', [V1, V2], ids=['V1', 'V2'])
MODES = pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])

PARTS = [name for name, _ in Block(8, 0.1, 0.5, True, 1e-6, 7).named_children()]
PARAMETERS = [name for name, _ in Block(8, 0.1, 0.5, True, 1e-6, 7).named_parameters()]
MODULE_HOOKS = [name for name in dir(nn.Module) if name.startswith('register_') and name.endswith('hook')]
GLOBAL_HOOKS = [name for name in dir(nn.modules.module) if name.startswith('register_module_') and 'hook' in name]
TENSOR_HOOKS = [name for name in dir(torch.Tensor) if name.startswith('register_') and 'hook' in name]


def block_of(kind: dict, training: bool = True, rate: float = 0.0) -> Block:
    torch.manual_seed(0)
    options = {'use_grn': False, **kind}
    block = Block(8, rate, eps=1e-6, kernel_size=7, **options)
    randomize(block)
    return block.train(training)


def image() -> torch.Tensor:
    return torch.randn(2, 8, 9, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def fused_calls(monkeypatch) -> list:
    """One entry per call of a fused block."""
    calls = []
    fused = Block.fused

    def counted(self, *args):
        calls.append(self)
        return fused(self, *args)

    monkeypatch.setattr(Block, 'fused', counted)
    return calls


def step(block: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of the input and of all parameters."""
    x = image()
    block.zero_grad()
    torch.manual_seed(2)
    out = block(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    grads = {'x': x.grad}
    for name, param in block.named_parameters():
        if param.grad is not None:
            grads[name] = param.grad.clone()
    return out.detach(), grads


def assert_same(found, expected) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-3, atol=1e-4, msg=name)


def test_lists_are_complete():
    """What the families below run over; a new name in torch or in the block must be looked at."""
    assert set(PARTS) == {name for name, *_ in PARTS_V1} == {name for name, *_ in PARTS_V2}
    assert len(PARAMETERS) == 11
    assert set(MODULE_HOOKS) == {
        'register_backward_hook',
        'register_forward_hook',
        'register_forward_pre_hook',
        'register_full_backward_hook',
        'register_full_backward_pre_hook',
        'register_load_state_dict_post_hook',
        'register_load_state_dict_pre_hook',
        'register_state_dict_post_hook',
        'register_state_dict_pre_hook',
    }
    assert set(GLOBAL_HOOKS) == {
        'register_module_backward_hook',
        'register_module_buffer_registration_hook',
        'register_module_forward_hook',
        'register_module_forward_pre_hook',
        'register_module_full_backward_hook',
        'register_module_full_backward_pre_hook',
        'register_module_module_registration_hook',
        'register_module_parameter_registration_hook',
    }
    assert set(TENSOR_HOOKS) == {'register_hook', 'register_post_accumulate_grad_hook'}


@KINDS
@MODES
def test_untouched_blocks_run_fused(kind, training, fused_calls, monkeypatch):
    block = block_of(kind, training, rate=0.5)
    expected = eager(monkeypatch, step, block)
    assert not fused_calls
    assert_same(step(block), expected)
    assert fused_calls == [block]


def recorded(block: Block, register: str, target: object, **options) -> list[str]:
    """Names of what a hook was called with, over a training step, saving and loading."""
    calls: list[str] = []

    def hook(*args):
        calls.append(type(args[0]).__name__)

    handle = getattr(target, register)(hook, **options)
    try:
        step(block)
        block.load_state_dict(block.state_dict())
        block.register_buffer('new', torch.zeros(1), persistent=False)
        block.new_module = nn.Identity()
        block.new_parameter = nn.Parameter(torch.zeros(1))
    finally:
        handle.remove()
    return calls


@KINDS
@pytest.mark.parametrize('register', MODULE_HOOKS)
@pytest.mark.parametrize('part', [*PARTS, 'itself'])
def test_hooks_on_modules_are_called(part, register, kind, monkeypatch):
    def run() -> list[str]:
        block = block_of(kind, rate=0.1)
        return recorded(block, register, block if part == 'itself' else getattr(block, part))

    expected = eager(monkeypatch, run)
    assert run() == expected
    assert expected, 'the hook must be called in the plain block, or the case is empty'


@pytest.mark.parametrize('register', GLOBAL_HOOKS)
def test_global_hooks_are_called(register, monkeypatch):
    # torch refuses hooks of both kinds in one process.
    monkeypatch.setattr(nn.modules.module, '_global_is_full_backward_hook', None)

    def run() -> list[str]:
        return recorded(block_of(V1), register, nn.modules.module)

    expected = eager(monkeypatch, run)
    assert run() == expected and expected


@KINDS
@pytest.mark.parametrize('register', TENSOR_HOOKS)
@pytest.mark.parametrize('parameter', PARAMETERS)
def test_hooks_on_parameters_are_called(parameter, register, kind, monkeypatch):
    def run() -> list[str]:
        block = block_of(kind)
        if parameter not in dict(block.named_parameters()):
            pytest.skip(f'blocks of this kind have no {parameter}')
        return recorded(block, register, block.get_parameter(parameter))

    expected = eager(monkeypatch, run)
    assert run() == expected and expected


def double(module: nn.Module, function):
    return lambda *args: 2 * function(*args)


@KINDS
@MODES
@pytest.mark.parametrize('part', PARTS)
def test_forward_of_an_instance(part, training, kind, monkeypatch):
    plain = step(block_of(kind, training))[0]
    block = block_of(kind, training)
    module = getattr(block, part)
    module.forward = double(module, module.forward)
    expected = eager(monkeypatch, step, block)
    assert_same(step(block), expected)
    if part != 'dwconv':  # LayerNorm takes the factor out again
        assert not torch.allclose(expected[0], plain, atol=1e-2)


@KINDS
@MODES
@pytest.mark.parametrize('part', PARTS)
def test_subclasses(part, training, kind, monkeypatch):
    """A class of one's own, as adapters and quantisers use, has its ``forward`` called."""
    block = block_of(kind, training)
    module = getattr(block, part)
    calls = []

    def forward(self, x):
        calls.append(part)
        return 2 * type(module).forward(self, x)

    own = copy.copy(module)
    own.__class__ = type('Own', (type(module),), dict(forward=forward))
    setattr(block, part, own)
    assert_same(step(block), eager(monkeypatch, step, block))
    assert calls == [part, part]


@KINDS
@pytest.mark.parametrize(
    'part, replacement',
    [
        ('act', nn.ReLU()),
        ('act', nn.GELU(approximate='tanh')),
        ('norm', nn.Identity()),
        ('norm', nn.LayerNorm(8, eps=1.0)),
        ('norm', nn.LayerNorm(8, elementwise_affine=False)),
        ('norm', nn.LayerNorm((11, 8))),
        ('dwconv', nn.Conv2d(8, 8, 3, padding=1)),
        ('dwconv', nn.Conv2d(8, 8, 7, padding=3, groups=8, padding_mode='reflect')),
        ('dwconv', nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False)),
        ('dwconv', nn.Conv2d(8, 8, (7, 3), padding=(3, 1), groups=8)),
        ('dwconv', nn.Conv2d(8, 8, 5, padding='same', groups=8)),
        ('dwconv', nn.Conv2d(8, 8, 7, padding=6, dilation=2, groups=8)),
        ('pwconv1', nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 32))),
        ('pwconv2', nn.Linear(32, 8, bias=False)),
        ('drop_path', nn.Dropout(0.5)),
        ('grn', nn.Hardtanh()),
    ],
    ids=str,
)
def test_replaced_parts(part, replacement, kind, monkeypatch):
    block = block_of(kind)
    setattr(block, part, copy.deepcopy(replacement))
    block(image())
    assert_same(step(block), eager(monkeypatch, step, block))


def test_other_sizes_of_hidden_layer_run_fused(fused_calls, monkeypatch):
    block = block_of(V1)
    block.pwconv1, block.pwconv2 = nn.Linear(8, 12), nn.Linear(12, 8)
    assert_same(step(block), eager(monkeypatch, step, block))
    assert fused_calls == [block]


@KINDS
@pytest.mark.parametrize('part', ['dwconv', 'pwconv1', 'pwconv2'])
@pytest.mark.parametrize('how', ['prune', 'parametrize', 'weight_norm', 'spectral_norm'])
def test_pruning_and_parametrizations(how, part, kind, monkeypatch):
    block = block_of(kind)
    module = getattr(block, part)
    if how == 'prune':
        prune.l1_unstructured(module, 'weight', amount=0.5)
    elif how == 'parametrize':
        parametrize.register_parametrization(module, 'weight', nn.Tanh())
    elif how == 'weight_norm':
        parametrizations.weight_norm(module)
    else:
        parametrizations.spectral_norm(module)
        block.eval()  # which keeps its vectors
    for _ in range(2):
        expected = eager(monkeypatch, step, copy.deepcopy(block) if how != 'prune' else block)
        assert_same(step(block), expected)


def test_lora_by_peft(monkeypatch):
    peft = pytest.importorskip('peft', reason='peft is not installed: it is in the extra `test`')
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=['pwconv1', 'pwconv2'], r=2))
    x = torch.randn(1, 3, 64, 64)
    sum(out.square().sum() for out in lora(x)).backward()
    found = {name: param.grad for name, param in lora.named_parameters() if param.grad is not None}
    assert len(found) == 20 and all('lora_' in name for name in found)
    lora.zero_grad()
    eager(monkeypatch, lambda: sum(out.square().sum() for out in lora(x)).backward())
    for name, param in lora.named_parameters():
        if param.grad is not None:
            torch.testing.assert_close(found[name], param.grad)


def test_dynamic_quantisation(monkeypatch):
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(quantised(x), eager(monkeypatch, quantised, x)):
            torch.testing.assert_close(found, expected)


@MODES
@KINDS
def test_torch_fx(kind, training, monkeypatch):
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = ConvNeXt(MICRO, drop_path_rate=0.3, **kind).train(training)
    x = torch.randn(2, 3, 64, 64)
    graph = torch.fx.symbolic_trace(model)
    torch.manual_seed(0)
    expected = eager(monkeypatch, model, x)
    torch.manual_seed(0)
    for found, out in zip(graph(x), expected):
        torch.testing.assert_close(found, out)

    train_nodes, eval_nodes = get_graph_node_names(model)
    node = 'stages.2.1.pwconv1'
    assert node in train_nodes and node in eval_nodes
    extractor = create_feature_extractor(model, [node, 'stages.0.0.act']).train(training)
    assert extractor(x)[node].shape == (2, 4, 4, 96)
    assert extractor(x)['stages.0.0.act'].shape == (2, 16, 16, 32)


@KINDS
@pytest.mark.parametrize('transform', ['grad', 'vjp', 'vmap', 'jvp', 'jacrev', 'jacfwd', 'hessian'])
def test_torch_func(transform, kind, monkeypatch):
    block = block_of(kind, training=False).double()
    x = torch.randn(1, 8, 3, 2, dtype=torch.double)

    def loss(y):
        return block(y).pow(3).sum()

    def run():
        if transform == 'vjp':
            out, pull = torch.func.vjp(block, x)
            return (out, *pull(torch.ones_like(out)))
        if transform == 'jvp':
            return torch.func.jvp(block, (x,), (torch.ones_like(x),))
        if transform == 'vmap':
            return (torch.func.vmap(block)(x[None].repeat(3, 1, 1, 1, 1)),)
        if transform == 'grad':
            return (torch.func.grad(loss)(x),)
        function = loss if transform == 'hessian' else block
        return (getattr(torch.func, transform)(function)(x),)

    for found, expected in zip(run(), eager(monkeypatch, run), strict=True):
        torch.testing.assert_close(found, expected)


def test_whole_model_under_torch_func():
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    params = dict(model.named_parameters())

    def loss(params, x):
        return torch.func.functional_call(model, params, (x[None],))[3].square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for name in params:
        for sample in range(2):
            model.zero_grad()
            model(x[sample : sample + 1])[3].square().sum().backward()
            grad = model.get_parameter(name).grad
            if grad is not None:
                torch.testing.assert_close(per_sample[name][sample], grad)


@KINDS
def test_forward_mode_differentiation(kind, monkeypatch):
    block, x = block_of(kind).double(), torch.randn(1, 8, 5, 4, dtype=torch.double)

    def run():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(block(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

    torch.testing.assert_close(run(), eager(monkeypatch, run))


@KINDS
@pytest.mark.parametrize('amp', [False, True])
def test_gradient_penalty(kind, amp, monkeypatch, fused_calls):
    """A second derivative, as users take it: the fused block runs, and its backward is differentiated again."""
    block = block_of(kind, rate=0.5)

    def run():
        torch.manual_seed(0)
        x = image()
        block.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            out = block(x)
        (grad,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        return grad.detach(), {'x': x.grad, **{name: param.grad.clone() for name, param in block.named_parameters()}}

    found = run()
    assert fused_calls == [block]
    expected = eager(monkeypatch, run)
    pairs = [(found[0], expected[0]), *((found[1][name], expected[1][name]) for name in expected[1])]
    for a, b in pairs:
        assert (a - b).norm() <= (0.05 if amp else 1e-4) * b.norm() + 1e-6


def test_counters_see_every_operation(monkeypatch):
    model, x = ConvNeXt(MICRO), torch.randn(1, 3, 64, 64)

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            model(x)[0].sum().backward()
        return counter.get_total_flops()

    assert count() == eager(monkeypatch, count) > 1e6


def test_function_modes_see_every_function(monkeypatch):
    class Names(torch.overrides.TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(getattr(function, '__name__', str(function)))
            return function(*args, **(kwargs or {}))

    def run():
        with Names() as names:
            block_of(V1)(image())
        return [name for name in names.names if name in ('conv2d', 'layer_norm', 'linear', 'gelu')]

    assert run() == ['conv2d', 'layer_norm', 'linear', 'gelu', 'linear']


def test_saved_tensors_hooks_see_what_the_plain_block_saves(monkeypatch):
    def run():
        shapes = []

        def pack(tensor):
            shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block_of(V1)(image()).sum().backward()
        return shapes

    assert run() == eager(monkeypatch, run)


def test_checkpointing_by_the_user_runs_fused(fused_calls, monkeypatch):
    from torch.utils.checkpoint import checkpoint

    block = block_of(V1, rate=0.5)
    wrapped = nn.ModuleDict(dict(block=block))
    wrapped.forward = lambda x: checkpoint(block, x, use_reentrant=False)
    assert_same(step(wrapped), eager(monkeypatch, step, wrapped))
    assert fused_calls == [block, block]


def test_tensor_subclasses(monkeypatch):
    class Own(torch.Tensor):
        pass

    block = block_of(V1, training=False)
    found = block(image().detach().as_subclass(Own))
    assert type(found) is Own
    torch.testing.assert_close(found.as_subclass(torch.Tensor), block(image()))


@KINDS
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', [(0, 8, 6, 6), (2, 8, 0, 6)])
def test_empty_batches(shape, training, kind, monkeypatch):
    block = block_of(kind, training, rate=0.5)

    def run():
        x = torch.zeros(shape, requires_grad=True)
        try:
            out = block(x)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        out.sum().backward()
        return tuple(out.shape), tuple(x.grad.shape)

    assert run() == eager(monkeypatch, run)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_mixed_types_are_refused_as_by_the_plain_block(dtype, monkeypatch):
    block = block_of(V1)

    def run():
        with pytest.raises(RuntimeError) as error:
            block(image().to(dtype))
        return str(error.value)

    assert run() == eager(monkeypatch, run)
    block.gamma.data = block.gamma.data.to(dtype)
    x = image()
    assert block(x).dtype == eager(monkeypatch, block, x).dtype


@KINDS
@pytest.mark.parametrize('parameter', PARAMETERS)
def test_a_parameter_elsewhere_is_refused_as_by_the_plain_block(parameter, kind, monkeypatch):
    block = block_of(kind)
    if parameter not in dict(block.named_parameters()):
        pytest.skip(f'blocks of this kind have no {parameter}')
    param = block.get_parameter(parameter)
    part, _, name = parameter.rpartition('.')
    setattr(block.get_submodule(part), name, nn.Parameter(param.detach().to('meta')))

    def run():
        try:
            return tuple(block(image()).shape)
        except RuntimeError as error:
            return str(error)

    assert run() == eager(monkeypatch, run)


@KINDS
@MODES
@pytest.mark.parametrize('parameter', PARAMETERS)
def test_buffers_in_the_place_of_parameters(parameter, training, kind, monkeypatch):
    """As of code that freezes weights by making them buffers."""
    block = block_of(kind, training)
    if parameter not in dict(block.named_parameters()):
        pytest.skip(f'blocks of this kind have no {parameter}')
    part, _, name = parameter.rpartition('.')
    module, value = block.get_submodule(part), block.get_parameter(parameter).detach()
    delattr(module, name)
    module.register_buffer(name, value)
    assert_same(step(block), eager(monkeypatch, step, block))


@pytest.mark.parametrize('strict', [True, False])
def test_exported_programs_hold_the_plain_block(strict):
    """With dynamo and without it."""
    block = block_of(V1, training=False)
    program = torch.export.export(block, (image().detach(),), strict=strict)
    names = {node.target.__name__ for node in program.graph.nodes if node.op == 'call_function'}
    assert {'layer_norm.default', 'gelu.default', 'linear.default'} <= names
    torch.testing.assert_close(program.module()(image().detach()), block(image().detach()))


def test_default_device_runs_fused(fused_calls):
    with torch.device('cpu'):
        block_of(V1)(image())
    assert len(fused_calls) == 1


def test_hooks_on_stages_are_called():
    """Grad-CAM and feature extraction as users write them: on a stage, which ConvNeXt must call."""
    model = ConvNeXt(MICRO, layer_scale_init_value=0.5).eval()
    seen, grads = [], []
    model.stages[3].register_forward_hook(lambda module, args, out: seen.append(out))
    model.stages[3].register_full_backward_hook(lambda module, grad_in, grad_out: grads.append(grad_out[0]))
    model(torch.randn(1, 3, 64, 64))[3].square().sum().backward()
    weights = grads[0].mean((2, 3), keepdim=True)
    cam = F.relu((weights * seen[0]).sum(1))
    assert cam.shape == (1, 2, 2) and torch.count_nonzero(grads[0])


def test_a_mean_teacher_by_hand(monkeypatch):
    """The teacher stays in eval() for ever, and its weights are changed in place, through ``.data``."""
    torch.manual_seed(0)
    student = ConvNeXt(MICRO, layer_scale_init_value=0.5)
    teacher = copy.deepcopy(student).eval()
    x = torch.randn(1, 3, 64, 64)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(teacher(x), eager(monkeypatch, teacher, x), rtol=1e-4, atol=1e-4)
            for mine, theirs in zip(teacher.parameters(), student.parameters()):
                mine.data.mul_(0.5).add_(torch.randn_like(theirs), alpha=0.5)


def test_construction_on_devices_without_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device('meta'):
        assert ConvNeXt('tiny', drop_path_rate=0.4).stages[3][2].drop_path.rate == pytest.approx(0.4)
    with FakeTensorMode():
        model = ConvNeXt('tiny', drop_path_rate=0.4)
        assert model(torch.empty(1, 3, 64, 64))[3].shape == (1, 768, 2, 2)


def test_the_rule_names_what_the_formula_calls():
    """Every part that the plain formula takes is under the rule."""
    taken = set(inspect.signature(residual_branch).parameters) - {'x', 'gamma'}
    assert taken | {'drop_path'} == {name for name, *_ in PARTS_V1}


def test_torch_that_cannot_be_asked_runs_plain(fused_calls, monkeypatch):
    """As torch 2.6, which lacks what the rule looks into."""
    monkeypatch.setattr('convnext_dense.models.fusion_rule.TORCH_CAN_BE_ASKED', False)
    ConvNeXt(MICRO)(torch.randn(1, 3, 32, 32))
    assert not fused_calls
