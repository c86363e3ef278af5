"""A recorded network shows what reaches it; closed forms and the embedded network show what comes of it."""

import copy
import functools
import math
import pickle
import warnings
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import odediff
import solvers
from odediff.problems import ExactNetwork, exact_model
from solvers import Status
from solvers.testing import Gaussian, Mixture

TABLE = odediff.VPTable.linear()


def states(batch: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 3, generator=generator, dtype=torch.float64).to(dtype)


class Recorded:
    """A smooth nonlinear network that keeps the arguments of its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor, dict]] = []

    def __call__(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None = None, **extra) -> torch.Tensor:
        self.calls.append((x, time, {"label": label, **extra}))
        shift = 0.0 if label is None else label.to(x.dtype).reshape(-1, 1, 1)
        return torch.sin(1.7 * x + 0.001 * time.to(x.dtype).reshape(-1, 1, 1) + 0.3 * shift)

    @property
    def times(self) -> list[float]:
        return [float(time[0]) for _, time, _ in self.calls]


class Module(nn.Module):
    """A float32 module: its parameters say which dtype the calls must have."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.dtype, time.dtype))
        return torch.tanh(self.scale * x)


def labelled(network: Recorded, **options) -> odediff.Model:
    return odediff.Model(network, TABLE, conditions={"label": 10}, null={"label": 10}, **options)


# --- guidance -----------------------------------------------------------------------------------------------------


def test_guidance_one_is_the_conditional_prediction_in_one_pass():
    network, x = Recorded(), states(4)
    model = labelled(network).condition(label=3, guidance=1.0)
    found = model.predict(TABLE.node(0.5), x).eps
    assert len(network.calls) == 1
    assert torch.equal(found, Recorded()(x, torch.full((4,), 499.0), torch.full((4,), 3)))
    assert odediff.probability_flow(model).passes == 1


@pytest.mark.parametrize("scale", [2.0, 7.5, 0.0, -1.0])
def test_guidance_moves_from_the_unconditional_prediction_through_the_conditional_one(scale):
    x, time = states(4, torch.float64), torch.full((4,), 499.0)
    model = labelled(Recorded()).condition(label=3, guidance=scale)
    conditional = Recorded()(x, time, torch.full((4,), 3))
    unconditional = Recorded()(x, time, torch.full((4,), 10))
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(model.predict(TABLE.node(0.5), x).eps, expected, rtol=0, atol=1e-14)


def test_guidance_shows_its_second_pass_in_the_network_evaluations_alone():
    for scale, passes in ((1.0, 1), (2.0, 2)):
        network = Recorded()
        model = labelled(network).condition(label=3, guidance=scale)
        found = odediff.sample(model, (2, 2, 3), solver=solvers.DDIM(), steps=5, return_solution=True)
        assert found.stats.nfe == 5
        assert found.stats.network_evaluations == len(network.calls) == 5 * passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sample_may_have_its_own_guidance(dtype):
    x, scales = states(4, dtype), [0.0, 1.0, 2.0, 7.5]
    model = labelled(Recorded()).condition(label=torch.tensor([3, 1, 4, 1]), guidance=torch.tensor(scales))
    together = model.predict(TABLE.node(0.5), x).eps
    assert together.dtype == dtype
    for i, (label, scale) in enumerate(zip([3, 1, 4, 1], scales, strict=True)):
        alone = labelled(Recorded()).condition(label=label, guidance=scale)
        torch.testing.assert_close(
            together[i : i + 1],
            alone.predict(TABLE.node(0.5), x[i : i + 1]).eps,
            rtol=0,
            atol=10 * torch.finfo(dtype).eps,
        )


def test_a_sample_of_guidance_one_among_others_is_the_conditional_prediction_bit_for_bit():
    x = states(64)
    model = labelled(Recorded()).condition(label=3, guidance=torch.ones(64))
    expected = Recorded()(x, torch.full((64,), 499.0), torch.full((64,), 3))
    assert torch.equal(model.predict(TABLE.node(0.5), x).eps, expected)


def test_the_pass_without_the_condition_is_told_what_the_null_does_not_name():
    network = Recorded()
    model = odediff.Model(network, TABLE, "epsilon", {"label": 3, "size": 64}, {"label": 10}, guidance=2.0)
    model.predict(TABLE.node(0.5), states(2))
    told = [{name: value.tolist() for name, value in words.items()} for _, _, words in network.calls]
    assert told == [{"label": [3, 3], "size": [64, 64]}, {"label": [10, 10], "size": [64, 64]}]


def test_guidance_of_another_precision_leaves_the_state_its_own():
    scales = torch.tensor([0.0, 1.0, 2.0, 7.5], dtype=torch.float64)
    found = labelled(Recorded()).condition(label=3, guidance=scales).predict(TABLE.node(0.5), states(4))
    assert (found.x0.dtype, found.eps.dtype) == (torch.float32, torch.float32)


def test_guidance_without_null_conditions_is_refused():
    with pytest.raises(ValueError, match=r"guidance=2.0 needs null="):
        odediff.Model(Recorded(), TABLE, conditions={"label": 3}, guidance=2.0)


@pytest.mark.parametrize("batch", [1, 3])
def test_guidance_of_another_batch_is_refused(batch):
    model = labelled(Recorded()).condition(label=3, guidance=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=rf"guidance.* 2 .*{batch}"):
        model.predict(TABLE.node(0.5), states(batch))


# --- conditions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [3, np.int64(3)], ids=["python", "numpy"])
def test_a_number_is_told_of_every_sample_and_rows_are_told_of_their_own(label):
    network = Recorded()
    model = odediff.Model(network, TABLE, conditions={"label": label, "text": torch.arange(8.0).reshape(4, 2)})
    model.predict(TABLE.node(0.5), states(4))
    seen = network.calls[0][2]
    assert torch.equal(seen["label"], torch.tensor([3, 3, 3, 3]))
    assert torch.equal(seen["text"], torch.arange(8.0).reshape(4, 2))


def test_one_row_stands_for_all_samples():
    network = Recorded()
    model = odediff.Model(network, TABLE, conditions={"text": torch.tensor([[1.0, 2.0]])})
    model.predict(TABLE.node(0.5), states(3))
    assert torch.equal(network.calls[0][2]["text"], torch.tensor([[1.0, 2.0]] * 3))


def test_what_is_neither_number_nor_tensor_reaches_the_network_as_it_is():
    network, marker = Recorded(), object()
    model = odediff.Model(network, TABLE, conditions={"marker": marker, "flag": True, "nothing": None})
    model.predict(TABLE.node(0.5), states(2))
    assert network.calls[0][2] == {"label": None, "marker": marker, "flag": True, "nothing": None}


def test_conditions_of_another_batch_are_refused():
    model = odediff.Model(Recorded(), TABLE, conditions={"label": torch.tensor([1, 2, 3])})
    with pytest.raises(ValueError, match="condition 'label' has 3 rows but the batch 4.*one row each"):
        model.predict(TABLE.node(0.5), states(4))


def test_a_condition_without_rows_is_refused_like_one_of_another_batch():
    model = odediff.Model(Recorded(), TABLE, conditions={"label": torch.empty(0)})
    with pytest.raises(ValueError, match="condition 'label' has 0 rows but the batch 2"):
        model.predict(TABLE.node(0.5), states(2))


def test_an_unknown_condition_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="condition 'lable' is unknown.*label"):
        labelled(Recorded()).condition(lable=3)


def test_condition_leaves_the_model_that_it_was_asked_of_alone():
    model = labelled(Recorded())
    changed = model.condition(label=3, guidance=2.0)
    assert (model.conditions, model.guidance) == ({"label": 10}, 1.0)
    assert (changed.conditions, changed.guidance) == ({"label": 3}, 2.0)


@pytest.mark.parametrize("index", [[2], [3, 0], [1, 1]])
def test_rows_select_conditions_and_guidance_and_keep_what_stands_for_all(index):
    x, index = states(4), torch.tensor(index)
    model = odediff.Model(
        Recorded(),
        TABLE,
        conditions={"label": torch.tensor([3, 1, 4, 1]), "text": torch.ones(1, 2)},
        null={"label": 10, "text": torch.zeros(1, 2)},
        guidance=torch.tensor([1.5, 2.0, 3.0, 7.5]),
    )
    node = TABLE.node(0.5)
    assert torch.equal(model.rows(index).predict(node, x[index]).eps, model.predict(node, x).eps[index])


class Unguided(odediff.ProbabilityFlow):
    """A flow whose predictions are not those of its model."""

    def predict(self, node, x):
        return self.model.condition(guidance=1.0).predict(node, x)


@pytest.mark.parametrize(
    "solver", [solvers.AdaptiveAdams(), solvers.Adaptive(solvers.Tsit5(), line=solvers.Rotation()), solvers.Scipy()]
)
def test_a_flow_with_predictions_of_its_own_has_them_for_a_part_of_the_samples_too(solver):
    model = labelled(Recorded()).condition(label=torch.arange(3), guidance=5.0)
    x, times = states(3, torch.float64), [1.0, 0.3]
    plain = odediff.probability_flow(model.condition(guidance=1.0))
    assert torch.equal(solvers.solve(Unguided(model), solver, x, times).x, solvers.solve(plain, solver, x, times).x)
    assert type(Unguided(model).rows([1])) is Unguided


@pytest.mark.parametrize("kind", [lambda w: {"w": w}, lambda w: [w], lambda w: ("text", {"deep": (w, 2)})])
def test_tensors_in_dicts_and_lists_have_a_row_for_each_sample_too(kind):
    def network(x, time, added):
        parts = [added]
        while not isinstance(parts[0], torch.Tensor):
            part = next(one for one in (parts[0].values() if isinstance(parts[0], dict) else parts[0]) if one != "text")
            parts = [part]
        return torch.sin(x * parts[0].reshape(-1, 1, 1))

    x, weights = states(4), torch.tensor([0.5, 1.0, 2.0, 3.0])
    node = TABLE.node(0.5)
    whole = odediff.Model(network, TABLE, conditions={"added": kind(weights)})
    expected = torch.sin(x * weights.reshape(-1, 1, 1))
    assert torch.equal(whole.predict(node, x).eps, expected)
    assert torch.equal(
        odediff.Model(network, TABLE, conditions=whole.conditions, chunk=3).predict(node, x).eps, expected
    )
    index = torch.tensor([2, 0])
    assert torch.equal(whole.rows(index).predict(node, x[index]).eps, expected[index])
    arrays = odediff.Model(network, TABLE, conditions={"added": kind(weights.numpy())})
    assert torch.equal(arrays.predict(node, x).eps, expected)
    with pytest.raises(ValueError, match="condition 'added' has 4 rows but the batch 3"):
        whole.predict(node, x[:3])
    solution = odediff.sample(whole, noise=x, rtol=1e-2)
    alone = odediff.sample(whole.rows(index), noise=x[index], rtol=1e-2)
    assert torch.allclose(solution[index], alone, rtol=1e-5)


class Size(NamedTuple):
    height: float
    width: float


@pytest.mark.parametrize(
    "kind", [lambda w: OrderedDict(height=w), lambda w: defaultdict(list, height=w), lambda w: Size(w, 1.0)]
)
def test_dicts_of_other_classes_and_named_tuples_have_rows_and_keep_their_class(kind):
    def network(x, time, added):
        assert type(added) is type(kind(1.0)) and getattr(added, "default_factory", list) is list
        height = added.height if isinstance(added, Size) else added["height"]
        return torch.tanh(x * height.reshape(-1, 1, 1))

    order = torch.tensor([2, 0, 3, 1])
    for weights in (torch.tensor([0.5, 1.0, 2.0, 3.0]), np.array([0.5, 1.0, 2.0, 3.0], dtype=np.float32)):
        model = odediff.Model(network, TABLE, "v", {"added": kind(weights)})
        for how in ({"steps": 5}, {"rtol": 1e-2}):
            found = odediff.sample(model.rows(order), noise=states(4)[order], **how)
            torch.testing.assert_close(found, odediff.sample(model, noise=states(4), **how)[order])
    with pytest.raises(ValueError, match="condition 'added' has 4 rows but the batch 3"):
        odediff.sample(model, (3, 2, 3), steps=5)


class Frozen(dict):
    def __setitem__(self, key, value):
        raise TypeError("frozen")


@pytest.mark.parametrize(
    "encoding",
    [UserDict(ids=torch.arange(6)), Size(1.0, 2.0), Frozen(ids=torch.ones(1))],
    ids=["mapping", "named tuple", "frozen dict"],
)
def test_an_object_of_a_class_of_its_own_reaches_the_network_as_it_is(encoding):
    network = Recorded()
    odediff.Model(network, TABLE, conditions={"encoding": encoding}).predict(TABLE.node(0.5), states(2))
    assert network.calls[0][2]["encoding"] is encoding


def test_numbers_in_lists_reach_the_network_as_they_are():
    network = Recorded()
    odediff.Model(network, TABLE, conditions={"size": (512, [0.5])}).predict(TABLE.node(0.5), states(2))
    assert network.calls[0][2]["size"] == (512, [0.5])


def test_a_tensor_without_rows_in_a_dict_stays_one():
    network = Recorded()
    odediff.Model(network, TABLE, conditions={"added": {"scale": torch.tensor(0.5)}}).predict(
        TABLE.node(0.5), states(2)
    )
    assert network.calls[0][2]["added"]["scale"].shape == ()


def test_a_number_has_the_precision_of_the_network():
    network = Keeping(nn.Linear(3, 3, dtype=torch.float64))
    odediff.Model(network, TABLE, conditions={"scale": 1.5}).predict(TABLE.node(0.5), states(2))
    assert network.told["scale"].dtype == torch.float64


# --- answers that overwrite each other ----------------------------------------------------------------------------


class Keeping(nn.Module):
    """A network that keeps what it is told."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time, **told):
        self.told = told
        return self.network(x)


class OneBuffer:
    """A network that answers in the same memory every time, as a whole or as a view."""

    def __init__(self, shape, view):
        self.buffer, self.view = torch.empty(shape), view

    def __call__(self, x, time):
        self.buffer.copy_(torch.tanh(x))
        return self.buffer[:] if self.view else self.buffer


@pytest.mark.parametrize("view", [False, True])
def test_answers_that_overwrite_what_a_method_holds_are_refused(view):
    model = odediff.Model(OneBuffer((2, 3), view), TABLE)
    with pytest.raises(ValueError, match="OneBuffer writes its output over the previous one.*return a clone"):
        odediff.sample(model, (2, 3), steps=6, solver=solvers.LMS())


class Replayed:
    """A network that answers as a CUDA graph does: in one memory, which nothing counts the writing to."""

    def __init__(self, shape):
        self.buffer = torch.empty(shape)

    def __call__(self, x, time):
        self.buffer.numpy()[...] = torch.tanh(x).numpy()
        return self.buffer.detach()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_answers_whose_memory_is_written_to_without_a_count_are_refused(mode):
    with mode(), pytest.raises(ValueError, match="Replayed returns its outputs in the same memory.*return a clone"):
        odediff.sample(odediff.Model(Replayed((2, 3)), TABLE), (2, 3), steps=6, solver=solvers.LMS())


@pytest.mark.parametrize("network", [Replayed((2, 2, 3)), OneBuffer((2, 2, 3), False)], ids=["graph", "buffer"])
def test_chunks_that_overwrite_each_other_are_refused(network):
    with pytest.raises(ValueError, match="network .* return a clone"):
        odediff.Model(network, TABLE, chunk=2).predict(TABLE.node(0.5), states(4))


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("solver", [solvers.DPMpp(3), solvers.Heun(solvers.Noise())], ids=repr)
def test_constants_and_answers_that_the_network_was_told_are_none_that_are_overwritten(solver, chunk):
    mean, target = torch.ones(3), torch.randn(2, 2, 3)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.ones(2, 2, 3))

        def forward(self, x, time):
            return self.mean[:]

    told, deep = ({"conditions": {"target": one}} for one in (target, {"deep": [target]}))
    for network, words in (
        (lambda x, t: mean.expand_as(x), {}),
        (lambda x, t, target: target, told),
        (lambda x, t, target: target["deep"][0], deep),
        (Mean(), {}),
    ):
        model = odediff.Model(network, TABLE, "x0", chunk=chunk, **words)
        assert torch.isfinite(odediff.sample(model, (2, 2, 3), steps=5, solver=solver)).all()


def test_a_state_may_leave_inference_mode():
    solver = solvers.DPMpp(3, lower_order_below=0)
    ode = odediff.probability_flow(odediff.Model(lambda x, time: torch.tanh(x), TABLE, "x0"))
    times = odediff.grid.log_snr(TABLE, 6)[:-1].tolist()
    with torch.inference_mode():
        first = solvers.solve(ode, solver, states(2), times[:4], closing=None)
    with torch.no_grad():
        carried = solvers.solve(ode, solver, first.x.clone(), times[3:], state=first.state, closing=None).x
    whole = solvers.solve(ode, solver, states(2), times, closing=None).x
    torch.testing.assert_close(carried, whole)


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_network_that_answers_with_its_input_overwrites_nothing(chunk):
    model = odediff.Model(
        lambda x, time, label: x[:], TABLE, conditions={"label": 1}, null={"label": 0}, guidance=2.0, chunk=chunk
    )
    assert torch.isfinite(odediff.sample(model, (2, 3), steps=6, solver=solvers.LMS())).all()


def test_a_network_on_another_device_is_named():
    def far(x, time):
        return x.to("meta")

    layer = nn.Linear(3, 3, device="meta")
    for network, message in (
        (far, r"network function returns its output on meta, but the state is on cpu; .*x\.to\(model\.device\)"),
        (far, r"model\.device is cpu as well: name the network's device in its place"),
        (lambda x, time: layer(x), r"network function computes with tensors on another device, .*code\.to"),
    ):
        with pytest.raises(ValueError, match=message):
            odediff.Model(network, TABLE).predict(TABLE.node(0.5), states(2))


def test_one_answer_for_all_calls_is_none_that_is_overwritten():
    constant = torch.ones(2, 3)
    model = odediff.Model(lambda x, time: constant, TABLE)
    assert torch.isfinite(odediff.sample(model, (2, 3), steps=6, solver=solvers.LMS())).all()
    assert pickle.loads(pickle.dumps(odediff.Model(nn.Identity(), TABLE))).path == TABLE


def tanh(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def test_a_copy_of_a_model_keeps_nothing_of_its_calls():
    model, sizes = odediff.Model(tanh, TABLE), []
    for t in (0.3, 0.5):
        model.predict(TABLE.node(t), states(2))
        sizes += [len(pickle.dumps(model)), len(pickle.dumps(copy.deepcopy(model)))]
    assert sizes == sizes[:1] * 4


# --- chunks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_chunk_gives_every_call_one_size_and_changes_no_value(batch):
    network, x, labels = Recorded(), states(batch), torch.arange(batch)
    options = {"conditions": {"label": labels}, "null": {"label": 10}, "guidance": 2.0}
    cut = odediff.Model(network, TABLE, chunk=4, **options)
    found = cut.predict(TABLE.node(0.5), x).eps
    assert {len(part) for seen, time, words in network.calls for part in (seen, time, words["label"])} == {4}
    assert len(network.calls) == 2 * math.ceil(batch / 4)
    torch.testing.assert_close(found, odediff.Model(Recorded(), TABLE, **options).predict(TABLE.node(0.5), x).eps)


def test_chunk_makes_the_bits_of_the_embedded_network_independent_of_the_batch():
    model = replace(odediff.zoo.fashion_mnist(), chunk=4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 1, 28, 28, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 10])
    node = model.path.node(0.4)
    with torch.no_grad():
        together = model.condition(label=labels).predict(node, x).eps
        for index in ([0], [6, 2], [5, 4, 3, 2, 1, 0]):
            index = torch.tensor(index)
            apart = model.condition(label=labels[index]).predict(node, x[index]).eps
            assert torch.equal(apart, together[index])


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("solver", [solvers.DDIM(), solvers.GPMultistep(), solvers.DDPM()], ids=repr)
def test_an_empty_batch_is_solved_like_any_other(solver, chunk):
    model = replace(odediff.zoo.fashion_mnist().condition(label=3, guidance=2.0), chunk=chunk)
    none, one = (
        odediff.sample(model, noise=torch.zeros(batch, 1, 28, 28), solver=solver, steps=3, return_solution=True)
        for batch in (0, 1)
    )
    assert none.x.shape == (0, 1, 28, 28) and none.stats.nfe == one.stats.nfe
    if solver.deterministic:
        code = odediff.encode(model, none.x, solver=solver, steps=3)
        assert odediff.decode(model, code).shape == (0, 1, 28, 28)


def test_a_batch_without_samples_needs_no_rows_of_a_condition():
    model = odediff.Model(Recorded(), TABLE, conditions={"label": torch.arange(2)})
    nothing = torch.empty(0, 2, 3)
    assert odediff.sample(model, noise=nothing, steps=2).shape == (0, 2, 3)
    guided = replace(model, null={"label": 10}, guidance=2.0)
    assert odediff.decode(guided, odediff.negative_prompt(guided, nothing, steps=3)).shape == (0, 2, 3)


# --- dtypes -------------------------------------------------------------------------------------------------------


def test_the_only_casts_are_at_the_network():
    module = Module()
    found = odediff.sample(odediff.Model(module, TABLE), (2, 2, 3), steps=3, dtype=torch.float64)
    assert set(module.seen) == {(torch.float32, torch.float32)}
    assert found.dtype == torch.float64


@pytest.mark.parametrize("form", ["epsilon", "x0"])
def test_a_call_in_chunks_casts_back_too(form):
    found = odediff.Model(Module(), TABLE, form, chunk=2).predict(TABLE.node(0.5), states(3, torch.float64))
    assert (found.x0.dtype, found.eps.dtype) == (torch.float64, torch.float64)


def test_the_precision_of_a_network_is_that_of_its_floating_point_parameters():
    module = Module()
    del module.scale
    module.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    module.scale = nn.Parameter(torch.tensor(0.7))
    odediff.Model(module, TABLE).predict(TABLE.node(0.5), states(2, torch.float64))
    assert next(module.parameters()).dtype == torch.int64 and module.seen == [(torch.float32, torch.float32)]


class KeptWide(Module):
    """Reports the precision of its layers, as the networks of diffusers do, and keeps a part in float32."""

    @property
    def dtype(self):
        return self.layer.weight.dtype

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=torch.bfloat16)


@pytest.mark.parametrize("wrapped", [lambda network: network, nn.DataParallel], ids=["plain", "parallel"])
def test_a_network_that_keeps_its_first_weights_in_float32_is_called_in_the_precision_that_it_reports(wrapped):
    network = KeptWide()
    model = odediff.Model(wrapped(network), TABLE)
    assert next(network.parameters()).dtype == torch.float32 and model.dtype == torch.bfloat16
    model.predict(TABLE.node(0.5), states(2))
    network.layer.double()
    model.predict(TABLE.node(0.5), states(2))
    assert [dtype for dtype, _ in network.seen] == [torch.bfloat16, torch.float64]


def test_a_network_whose_weights_are_stored_in_eight_bits_is_called_in_the_precision_of_the_others():
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, dtype=torch.bfloat16))
    network[0].to(torch.float8_e4m3fn)

    def widen(layer, arguments):
        layer.to(arguments[0].dtype)

    network[0].register_forward_pre_hook(widen)
    model = odediff.Model(Told(network), TABLE)
    assert model.dtype == torch.bfloat16
    assert model.predict(TABLE.node(0.5), states(2)).eps.dtype == torch.float32


def test_a_float64_state_around_a_float32_network_loses_no_digits_of_its_own():
    x = states(3, torch.float64)
    node = TABLE.node(0.3)
    with torch.no_grad():
        found = odediff.Model(Module(), TABLE).predict(node, x)
        output = Module()(x.float(), torch.zeros(3)).double()
    torch.testing.assert_close(found.x0, (x - node.sigma * output) / node.alpha, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_without_parameters_gets_the_dtype_of_the_state(dtype):
    network = Recorded()
    found = odediff.Model(network, TABLE).predict(TABLE.node(0.5), states(2, dtype))
    assert network.calls[0][0].dtype == found.eps.dtype == found.x0.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_network_is_told_the_time_undamaged(dtype):
    # bfloat16 has 8 significant bits: entry 999 would be told as 1000, entry 501 as 500.
    network = Module().to(dtype)
    times: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, arguments: times.append(arguments[1]))
    model = odediff.Model(network, TABLE)
    with torch.no_grad():
        for n in (1000, 502, 2):
            model.predict(TABLE.node(n / 1000), states(2))
    assert [float(time[0]) for time in times] == [999.0, 501.0, 1.0]


# --- network time -------------------------------------------------------------------------------------------------


def test_the_network_is_told_whole_table_entries_at_every_entry():
    network = Recorded()
    model = odediff.Model(network, TABLE)
    x = states(1)
    for n in range(1, 1001):
        model.predict(TABLE.node(n / 1000), x)
    assert network.times == [float(n - 1) for n in range(1, 1001)]


def test_between_entries_the_network_is_told_the_fraction():
    network = Recorded()
    odediff.Model(network, TABLE).predict(TABLE.node(0.50025), states(1, torch.float64))
    assert network.times == [pytest.approx(499.25, abs=1e-9)]


def test_an_integer_time_network_gets_int64_and_snapped_entries():
    network = Recorded()
    model = odediff.Model(network, TABLE, integer_time=True)
    for spacing in ("leading", "trailing", "linspace"):
        times = odediff.grid.uniform_t(TABLE, 30, spacing=spacing)
        odediff.sample(model, (2, 2, 3), solver=solvers.DDIM(), grid=times)
        assert network.times == [round(1000 * t) - 1 for t in times[:-1].tolist()]
        assert {time.dtype for _, time, _ in network.calls} == {torch.int64}
        network.calls.clear()


def test_whole_times_that_arithmetic_just_misses_are_rounded_and_not_cut():
    network, entries = Recorded(), [43, 51, 59, 1000]
    model = odediff.Model(network, TABLE, integer_time=True, network_time=lambda t: t / 0.001 - 1)
    for n in entries:
        model.predict(TABLE.node(n / 1000), states(1))
    assert 43 / 1000 / 0.001 < 43 and network.times == [n - 1 for n in entries]


def test_an_integer_time_network_on_another_schedule_is_sent_back_to_its_own():
    model = odediff.Model(Recorded(), TABLE, integer_time=True).remap(odediff.VPCosine())
    with pytest.raises(ValueError, match=r"evaluated at .*; sample on its own schedule"):
        odediff.sample(model, (2, 3), solver=solvers.DDIM(), steps=4)


def test_a_condition_may_be_called_guidance():
    model = odediff.Model(
        Recorded(), TABLE, conditions={"guidance": 3.5, "label": 1}, null={"guidance": 1, "label": 10}
    )
    found = model.condition({"guidance": 4.0}, guidance=2.0, label=3)
    assert (found.conditions, found.guidance) == ({"guidance": 4.0, "label": 3}, 2.0)
    with pytest.raises(ValueError, match="condition 'size' is unknown"):
        model.condition({"size": 4})


def test_an_integer_time_network_is_never_asked_between_entries():
    network = Recorded()
    model = odediff.Model(network, TABLE, integer_time=True)
    with pytest.raises(ValueError, match=r"integer_time=True.*499\.25.*uniform_t"):
        model.predict(TABLE.node(0.50025), states(2))
    assert network.calls == []
    with pytest.raises(ValueError, match=r"integer_time=True.*a solver that evaluates only at its nodes"):
        odediff.sample(model, (2, 2, 3), solver=solvers.RK4(), grid=odediff.grid.uniform_t, steps=10)
    with pytest.raises(ValueError, match=r"integer_time=True.*give the times in float64"):
        odediff.sample(model, (2, 2, 3), solver=solvers.DDIM(), grid=torch.tensor([0.6, 0.3, 0.0]))


@pytest.mark.parametrize("to_network", [lambda t: 1000 * t, lambda t: int(1000 * t), lambda t: np.float64(1000 * t)])
def test_a_convention_of_the_users_own_reaches_every_sample(to_network):
    network = Recorded()
    odediff.Model(network, TABLE, network_time=to_network).predict(TABLE.node(0.5), states(3))
    assert torch.equal(network.calls[0][1], torch.full((3,), 500.0))


def test_a_convention_of_the_users_own_is_asked_at_every_call():
    scale = [1000.0]
    network, node = Recorded(), TABLE.node(0.5)
    model = odediff.Model(network, TABLE, network_time=lambda t: scale[0] * t)
    for scale[0] in (1000.0, 1.0):
        model.predict(node, states(3))
    assert network.times == [500.0, 0.5]


def test_a_network_may_scale_the_times_that_it_receives_in_place():
    seen = []

    def network(x, time):
        seen.append(float(time[0]))
        time *= 2
        return torch.zeros_like(x)

    model = odediff.Model(network, TABLE, network_time=lambda t: np.array([1000 * t]))
    for _ in range(2):
        model.predict(TABLE.node(0.5), states(1, torch.float64))
    assert seen == [500.0, 500.0]


@pytest.mark.parametrize("told", [None, "999", [None]])
def test_a_convention_that_returns_no_number_is_named(told):
    model = odediff.Model(Recorded(), TABLE, network_time=lambda t: told)
    with pytest.raises(TypeError, match=r"network_time=.* returned .* for t=0.5; let it return numbers"):
        model.predict(TABLE.node(0.5), states(2))


def test_samples_may_stand_at_times_of_their_own():
    network, times, x = Recorded(), np.array([0.2, 0.5, 0.9]), states(3, torch.float64)
    model = odediff.Model(network, TABLE)
    together = model.predict(TABLE.node(times), x)
    assert network.calls[0][1].tolist() == [199.0, 499.0, 899.0]
    for i, t in enumerate(times.tolist()):
        alone = model.predict(TABLE.node(t), x[i : i + 1])
        torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(together.eps[i : i + 1], alone.eps, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("t", [0.0, 0.0005])
def test_a_network_trained_on_a_table_is_not_asked_below_its_first_entry(t):
    network = Recorded()
    with pytest.raises(ValueError, match=r"times: .*below.*0\.001.*(closing|continuous=True)"):
        odediff.Model(network, TABLE).predict(TABLE.node(t), states(2))
    assert network.calls == []


def test_a_continuous_network_may_be_asked_down_to_the_data():
    network = Recorded()
    path = odediff.VPLinear()
    model = odediff.Model(network, path, continuous=True)
    x = states(2, torch.float64)
    assert torch.equal(model.predict(path.node(0.0), x).x0, x)


# --- another schedule for a trained network -----------------------------------------------------------------------

SHARED_RATIOS = torch.linspace(-math.log(60.0), math.log(50.0), 13, dtype=torch.float64)
"""Half log-SNRs that every path below reaches."""


def on_path(path: odediff.Schedule) -> torch.Tensor:
    return torch.from_numpy(path.time(SHARED_RATIOS.numpy().copy()))


def trajectory_in_y(model: odediff.Model, solver: solvers.Solver, y: torch.Tensor) -> torch.Tensor:
    """The states at all nodes, divided by alpha, from ``y`` at the first."""
    times = on_path(model.path)
    nodes = [model.path.node(t) for t in times.tolist()]
    with torch.no_grad():
        found = solvers.solve(odediff.probability_flow(model), solver, nodes[0].alpha * y, times, trajectory=True)
    return torch.stack([x / node.alpha for x, node in zip(found.trajectory, nodes, strict=True)])


OTHER_PATHS = [odediff.VE(), odediff.VPCosine(), odediff.RectifiedFlow(), odediff.SubVP()]


@pytest.mark.parametrize("form", ["epsilon", "x0", "v", "flow", "score"])
@pytest.mark.parametrize("path", OTHER_PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("solver", [solvers.DDIM(), solvers.Heun(solvers.Noise())], ids=["DDIM", "Heun"])
def test_a_remapped_model_follows_the_same_trajectory_in_y_at_the_same_ratios(form, path, solver):
    weights, deviations = torch.tensor([0.3, 0.7]), torch.tensor([0.2, 0.5])
    mixture = Mixture(weights.double(), torch.tensor([[1.0, 0.5], [-0.6, 0.2]]).double(), deviations.double())
    trained = exact_model(mixture, TABLE, form)
    y = 60 * states(5, torch.float64)[:, :, 0]
    expected = trajectory_in_y(trained, solver, y)
    torch.testing.assert_close(trajectory_in_y(trained.remap(path), solver, y), expected, rtol=0, atol=1e-10)


def test_the_embedded_network_remapped_to_a_straight_path_follows_the_same_trajectory():
    model = odediff.zoo.fashion_mnist().condition(label=7)
    noise = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = trajectory_in_y(model, solvers.DDIM(), 60 * noise)
    found = trajectory_in_y(model.remap(odediff.RectifiedFlow()), solvers.DDIM(), 60 * noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # a float32 network, states of size 60


@pytest.mark.parametrize("path", OTHER_PATHS, ids=lambda path: type(path).__name__)
def test_a_remapped_table_model_samples_and_inverts_on_the_default_grid(path):
    law = Gaussian(mean=0.4, deviation=0.5)
    trained = odediff.Model(ExactNetwork(law, TABLE), TABLE, network_time=lambda t: t)
    model = trained.remap(path)
    found = odediff.sample(model, (2000, 1), steps=40, dtype=torch.float64)
    assert float(found.mean()) == pytest.approx(0.4, abs=4 * 0.5 / math.sqrt(2000))
    assert float(found.std()) == pytest.approx(0.5, rel=4 / math.sqrt(4000))
    code = odediff.encode(model, found[:5], steps=80)
    torch.testing.assert_close(odediff.decode(model, code), found[:5], rtol=0, atol=1e-3)


def test_remapping_back_is_the_model_itself():
    network = Recorded()
    model = odediff.Model(network, TABLE)
    there_and_back = model.remap(odediff.VE()).remap(TABLE)
    x = states(2, torch.float64)
    found, expected = (m.predict(TABLE.node(0.4), x).eps for m in (there_and_back, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_remapped_table_model_is_not_asked_below_its_first_entry():
    path = odediff.VE(sigma_min=1e-4)
    model = odediff.Model(Recorded(), TABLE).remap(path)
    with pytest.raises(ValueError, match="below the first time"):
        model.predict(path.node(1e-3), states(1))
    first = path.time(TABLE.log_snr(TABLE.first_defined))
    assert model.path.first_defined == pytest.approx(first, rel=1e-9)


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(
    ("output", "named"),
    [
        (lambda x, t: x[:, :1], r"\(3, 1, 3\)|\(2, 1, 3\)"),
        (lambda x, t: torch.cat((x, x), dim=1), r"\(3, 4, 3\)|\(2, 4, 3\)"),
        (lambda x, t: x.sum(), r"\(\)"),
        (lambda x, t: None, "NoneType"),
        (lambda x, t: (x, x), "tuple"),
        (lambda x, t: x.to(torch.complex128), r"\(3, 2, 3\) of torch.complex128|\(2, 2, 3\) of torch.complex128"),
        (lambda x, t: x.long(), r"\(3, 2, 3\) of torch.int64|\(2, 2, 3\) of torch.int64"),
    ],
    ids=["fewer channels", "learned variances", "scalar", "None", "tuple", "complex numbers", "whole numbers"],
)
def test_a_network_that_returns_something_else_is_named_with_both_shapes(output, named, chunk):
    model = odediff.Model(output, TABLE, chunk=chunk)
    with pytest.raises(
        ValueError, match=rf"network returned ({named}).*\((3|2), 2, 3\).*must return a real floating-point tensor"
    ):
        model.predict(TABLE.node(0.5), states(3))


def test_a_network_that_turns_nan_fails_its_own_sample_alone():
    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        output = torch.sin(x)
        output[1] = math.nan
        return output

    model = odediff.Model(network, TABLE)
    with pytest.raises(
        solvers.SolveError, match="1 of 3 samples NON_FINITE: .*check what the network returns"
    ) as caught:
        odediff.sample(model, (3, 2, 3), steps=4)
    found = caught.value.solution
    assert found.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    assert torch.isfinite(found.x[[0, 2]]).all()
    healthy = odediff.sample(odediff.Model(lambda x, t: torch.sin(x), TABLE), (3, 2, 3), steps=4)
    assert torch.equal(found.x[[0, 2]], healthy[[0, 2]])
    kept = odediff.sample(model, (3, 2, 3), steps=4, throw=False)
    assert torch.equal(kept[[0, 2]], healthy[[0, 2]]) and torch.isnan(kept[1]).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"network": "weights.pt"}, TypeError, "network='weights.pt' must be callable"),
        ({"network": Recorded}, TypeError, r"network=.*Recorded'> is a class; pass an instance, Recorded\(\.\.\.\)"),
        ({"path": TABLE.alphas_cumprod}, TypeError, "path must be a schedule, not a ndarray.*VPTable"),
        ({"prediction": "eps"}, ValueError, "prediction='eps' is unknown; use one of epsilon, x0, v, flow, score"),
        ({"prediction": "velocity"}, ValueError, "prediction='velocity'"),
        ({"chunk": 0}, ValueError, "chunk=0"),
        ({"chunk": 2.5}, ValueError, "chunk=2.5"),
        ({"chunk": True}, ValueError, "chunk=True"),
        ({"threshold": "dynamic"}, TypeError, "threshold='dynamic'.*DynamicThreshold"),
        ({"guidance": math.nan}, ValueError, "guidance=nan must be finite"),
        ({"guidance": torch.tensor([1.0, math.inf]), "null": {"label": 10}}, ValueError, "guidance=.* must be finite"),
        ({"guidance": "strong", "null": {"label": 10}}, TypeError, "guidance='strong'"),
        ({"trained_path": 5}, TypeError, "trained_path=5 is not a schedule"),
        ({"network_time": 5}, TypeError, "network_time=5 must be a function"),
        ({"guidance": torch.tensor([True]), "null": {"label": 10}}, TypeError, "guidance has dtype torch.bool"),
        ({"guidance": torch.tensor([1j]), "null": {"label": 10}}, TypeError, "guidance has dtype torch.complex64"),
    ],
)
def test_a_wrong_declaration_is_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        odediff.Model(**{"network": Recorded(), "path": TABLE, **options})


def test_a_tensor_of_one_guidance_is_that_number():
    one, other = (
        odediff.Model(Recorded(), TABLE, null={"label": 10}, guidance=w, chunk=c)
        for w, c in ((2.0, 4), (torch.tensor(2.0), np.int64(4)))
    )
    assert (other.guidance, other.amplification, other.chunk) == (one.guidance, one.amplification, one.chunk)


def test_a_solve_has_a_derivative_by_its_guidance_in_both_modes():
    labels = {"label": torch.tensor([1.0, 2.0])}, {"label": torch.tensor([0.0])}

    def network(x, time, label):
        return torch.tanh(x) * (1 + 0.1 * label.reshape(-1, 1))

    def end(scale):
        ode = odediff.probability_flow(odediff.Model(network, TABLE, "epsilon", *labels, guidance=scale))
        x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
        return solvers.solve(ode, solvers.DDIM(), x, odediff.grid.log_snr(TABLE, 5)).x.sum()

    scale = torch.tensor(2.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(end, scale.clone().requires_grad_(), check_forward_ad=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scale, torch.ones_like(scale))
        tangent = forward_ad.unpack_dual(end(dual)).tangent
    difference = (end(scale + 1e-6) - end(scale - 1e-6)) / 2e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-7, atol=0)
    torch.testing.assert_close(torch.func.grad(end)(scale), tangent)
    torch.testing.assert_close(torch.func.jvp(end, (scale,), (torch.ones_like(scale),))[1], tangent)


def test_a_form_without_information_at_the_start_is_refused_before_the_network_is_asked():
    network = Recorded()
    model = odediff.Model(network, odediff.RectifiedFlow(), prediction="epsilon")
    with pytest.raises(ValueError, match=r'prediction="epsilon" carries no information at alpha = 0'):
        odediff.sample(model, (2, 2, 3), solver=solvers.DDIM(), steps=3)
    assert network.calls == []


def test_a_network_that_writes_to_its_input_is_refused():
    def writes(x, time):
        return torch.sin(x.mul_(0.5))

    model = odediff.Model(writes, odediff.VPLinear(), prediction="v")
    with pytest.raises(ValueError, match=r"network function writes to its input.*clone"):
        odediff.sample(model, (2, 3), steps=3)


def test_a_network_that_returns_one_buffer_is_named_under_guidance():
    buffer = torch.empty(2, 3)

    def network(x, time, label):
        return buffer.copy_(torch.tanh(x) + 0.3 * label[:, None])

    def engine(x, time, label):
        # Outside of torch, whose count of writes does not see it.
        buffer.numpy()[:] = torch.tanh(x) + 0.3 * label[:, None]
        return buffer[:]

    for answering, message in ((network, "over the previous one"), (engine, "in the same memory at each call")):
        model = odediff.Model(answering, TABLE, conditions={"label": 3.0}, null={"label": 0.0}, guidance=3.0)
        with pytest.raises(ValueError, match=f"{message}.*return a clone"):
            odediff.sample(model, (2, 3), steps=3)
    same = odediff.Model(lambda x, time, label: x, TABLE, conditions={"label": 1}, null={"label": 0}, guidance=3.0)
    assert odediff.sample(same, (2, 3), steps=3).isfinite().all()


def test_a_condition_without_a_null_may_be_changed():
    null = {"text": torch.ones(1, 3)}
    model = odediff.Model(Recorded(), TABLE, conditions={"text": torch.zeros(1, 3), "size": 64}, null=null)
    assert model.condition(size=32).conditions["size"] == 32
    with pytest.raises(ValueError, match="'colour' is unknown to this model; it takes size, text"):
        model.condition(colour=1)


def test_a_null_embedding_is_one_row_or_keeps_a_row_for_every_sample():
    rows = torch.arange(12.0).reshape(3, 4)
    for null, expected in ((rows, rows), (rows[1:2], rows[1]), (rows[1], rows[1])):
        model = odediff.Model(Recorded(), TABLE, null={"text": null, "size": 64})
        assert model.null_embedding().keys() == {"text"} and torch.equal(model.null_embedding()["text"], expected)


def test_a_continuous_network_of_a_table_is_told_times_down_to_the_data():
    seen = Recorded()
    model = odediff.Model(seen, TABLE, continuous=True)
    odediff.sample(model, noise=states(2), solver=solvers.Heun(solvers.Noise()), steps=5, closing=None)
    assert seen.times[0] == 999 and seen.times[-1] == -1
    exact = ExactNetwork(Gaussian(), TABLE)
    model = odediff.Model(lambda x, n: exact(x, (n.double() + 1) / 1000), TABLE, continuous=True)
    x = states(2, torch.float64)
    found = odediff.sample(
        model, noise=x, solver=solvers.Adaptive(solvers.Dopri5(), line=solvers.Rotation()), rtol=1e-8
    )
    torch.testing.assert_close(found, Gaussian().flow(TABLE.node(1.0), TABLE.node(0.0), x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: odediff.Model(Recorded(), TABLE, guidance=torch.ones(2, 1), null={"a": 0}), ValueError, r"\(2, 1\)"),
        (lambda: odediff.Model(Recorded(), TABLE).remap("cosine"), TypeError, "path='cosine' is not a schedule"),
    ],
)
def test_what_would_fail_in_the_midst_of_a_solve_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_method_of_a_module_has_its_dtype_and_its_weights():
    from odediff.fingerprint import fingerprint

    class Net(nn.Linear):
        def forward(self, x, time):
            return super().forward(x)

    one, other = Net(3, 3), Net(3, 3)
    assert fingerprint(one.forward) == fingerprint(one) != fingerprint(other.forward)
    found = odediff.sample(odediff.Model(one.forward, TABLE), (2, 3), dtype=torch.float64, steps=3)
    assert found.dtype == torch.float64


def test_a_compiled_network_is_called_in_its_own_dtype():
    network = Module().double()
    found = odediff.Model(torch.compile(network, backend="eager"), TABLE).predict(TABLE.node(0.5), states(4)).eps
    torch.testing.assert_close(found, torch.tanh(0.7 * states(4)))
    assert found.dtype == torch.float32
    assert {dtype for dtype, _ in network.seen} == {torch.float64}


def test_a_state_is_drawn_where_the_network_is():
    class Asked(Exception):
        pass

    class Elsewhere(Module):
        def forward(self, x, time):
            raise Asked(x.device)

    model = odediff.Model(Elsewhere().to("meta"), TABLE)
    assert model.device == torch.device("meta")
    assert odediff.Model(Recorded(), TABLE).device == torch.device("cpu")
    with pytest.raises(Asked, match="meta"):
        odediff.sample(model, (2, 3), steps=3)
    with pytest.raises(Asked, match="cpu"):
        odediff.sample(model, (2, 3), steps=3, device="cpu")


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(3)])
def test_a_network_in_training_mode_is_warned_of(part):
    network = nn.Sequential(part)
    for called in (network, lambda x, time: network(x), functools.partial(network)):
        with pytest.warns(UserWarning, match=r"training mode.*network\.eval\(\)"):
            odediff.probability_flow(odediff.Model(called, TABLE))
    network.eval()
    assert not odediff.Model(network, TABLE).unsteady
    assert not odediff.Model(Module(), TABLE).unsteady
    assert not odediff.Model(nn.Dropout(0.0), TABLE).unsteady


@pytest.mark.parametrize(
    ("part", "steady"),
    [
        (nn.GRU(3, 3, num_layers=2, dropout=0.5), nn.GRU(3, 3, num_layers=2)),
        (nn.MultiheadAttention(4, 2, dropout=0.5), nn.MultiheadAttention(4, 2)),
        (nn.RReLU(), nn.LeakyReLU()),
    ],
)
def test_every_part_that_draws_in_training_mode_is_warned_of(part, steady):
    assert odediff.Model(nn.Sequential(part), TABLE).unsteady
    assert not odediff.Model(nn.Sequential(part).eval(), TABLE).unsteady
    assert not odediff.Model(nn.Sequential(steady), TABLE).unsteady


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(3), nn.RReLU()], ids=str)
@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda network: torch.jit.trace(network, torch.ones(2, 3), check_trace=False)]
)
def test_a_scripted_network_in_training_mode_is_warned_of(part, compiled):
    assert odediff.Model(compiled(nn.Sequential(part).train()), TABLE).unsteady
    assert not odediff.Model(compiled(nn.Sequential(part).eval()), TABLE).unsteady
    assert not odediff.Model(compiled(nn.Sequential(nn.Linear(3, 3))), TABLE).unsteady


def test_a_batch_norm_without_running_statistics_is_warned_of_in_every_mode():
    network = nn.BatchNorm1d(3, track_running_stats=False).eval()
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0], [2.0, 0.0, 1.0]])
    assert not torch.equal(network(x[:2]), network(x)[:2])
    with pytest.warns(UserWarning, match="statistics of its batch.*let every batch norm track running statistics"):
        odediff.probability_flow(odediff.Model(network, TABLE))


@pytest.mark.parametrize(
    "call",
    [
        odediff.probability_flow,
        lambda model: odediff.sample(model, (2, 3), steps=3),
        lambda model: odediff.sample(model, (2, 3), rtol=0.1),
        lambda model: odediff.encode(model, torch.zeros(2, 3), steps=3),
        lambda model: odediff.encode(model, torch.zeros(2, 3), solver=solvers.BDIA(), steps=3),
        lambda model: odediff.decode(model, code_of(model)),
        lambda model: odediff.direct_inversion(model, torch.zeros(2, 3), steps=3),
        lambda model: odediff.edit_friendly(model, torch.zeros(2, 3), steps=3),
        lambda model: odediff.cycle_diffusion(model, torch.zeros(2, 3), steps=3),
        lambda model: odediff.null_text(guided(model), torch.zeros(2, 3), steps=3),
        lambda model: odediff.shared_null(guided(model), torch.zeros(2, 3), steps=3),
        lambda model: odediff.negative_prompt(guided(model), torch.zeros(2, 3), steps=3),
    ],
)
def test_each_call_warns_of_training_mode_once_at_the_users_line(call):
    network = nn.Dropout(1e-9)
    model = odediff.Model(lambda x, time, prompt=None: 0.1 * network(x), TABLE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(model)
    found = [one for one in caught if "training mode" in str(one.message)]
    assert [one.filename for one in found] == [__file__]


def code_of(model: odediff.Model) -> odediff.Code:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return odediff.encode(model, torch.zeros(2, 3), steps=3)


def guided(model: odediff.Model) -> odediff.Model:
    plain, null = model.network, {"prompt": torch.zeros(1, 3)}

    def network(x, time, prompt):
        return plain(x, time) + 0.1 * prompt

    return replace(model, network=network, conditions={"prompt": torch.ones(1, 3)}, null=null, guidance=2.0)


def test_the_device_is_that_of_a_module_that_a_function_holds():
    network = nn.Linear(3, 3, device="meta")
    assert odediff.Model(lambda x, time: network(x), TABLE).device == torch.device("meta")


def test_a_condition_in_another_precision_than_the_network_is_named():
    class Prompted(nn.Linear):
        def forward(self, x, time, prompt, size):
            return super().forward(x) + super().forward(prompt["text"])

    condition = {"size": torch.ones(2, dtype=torch.float16), "prompt": {"text": torch.ones(2, 3)}}
    model = odediff.Model(Prompted(3, 3, dtype=torch.float16), TABLE, conditions=condition)
    with pytest.raises(
        TypeError, match=r"condition 'prompt' has dtype torch.float32.*state of torch.float16.*same dtype"
    ):
        model.predict(TABLE.node(0.5), states(2))
    model.condition(prompt={"text": torch.ones(2, 3, dtype=torch.float16)}).predict(TABLE.node(0.5), states(2))


def test_the_precision_is_that_of_a_module_that_a_function_holds():
    network = nn.Linear(3, 3, dtype=torch.float64)
    for called in (lambda x, time: network(x.double()), functools.partial(lambda held, x, time: held(x), network)):
        assert odediff.Model(called, TABLE).dtype == torch.float64
    assert odediff.Model(lambda x, time: x, TABLE).dtype is None


def test_a_function_receives_the_state_as_it_is_and_casts_for_its_modules():
    encoder, network = nn.Linear(3, 3, dtype=torch.float16), nn.Linear(3, 3)
    seen = []

    def preconditioned(x, time):
        seen.append(x.dtype)
        shift = encoder(torch.ones(3, dtype=torch.float16))
        return 0.5 * x + network(x.float()).to(x.dtype) + shift.to(x.dtype)

    odediff.sample(odediff.Model(preconditioned, TABLE), (2, 3), steps=3, dtype=torch.float64)
    assert set(seen) == {torch.float64}


@pytest.mark.parametrize("options", [{}, {"chunk": 2}])
def test_conditions_may_be_arrays(options):
    labels, x = np.array([1, 2, 3, 4]), states(4)
    found = odediff.Model(Recorded(), TABLE, conditions={"label": labels}, **options).predict(TABLE.node(0.5), x).eps
    wanted = labelled(Recorded(), **options).condition(label=torch.from_numpy(labels)).predict(TABLE.node(0.5), x).eps
    assert torch.equal(found, wanted)
    rows = odediff.Model(Recorded(), TABLE, conditions={"label": labels}).rows(torch.tensor([2, 0]))
    assert rows.conditions["label"].tolist() == [3, 1]


def test_conditions_that_are_no_keywords_are_refused():
    with pytest.raises(TypeError, match=r"conditions=\[1\] must be keyword arguments"):
        odediff.Model(Recorded(), TABLE, conditions=[1])


def test_a_network_that_writes_to_its_condition_is_refused():
    def writes(x, time, size):
        return torch.tanh(x) + size.mul_(0.5)[:, None]

    model = odediff.Model(writes, TABLE, "v", {"size": torch.ones(2)})
    with pytest.raises(ValueError, match=r"network function writes to the condition 'size'.*clone"):
        odediff.sample(model, (2, 3), steps=3)


@pytest.mark.parametrize("kind", [lambda w: {"deep": (w, "text")}, lambda w: [{}, w], lambda w: Size(w, 1.0)])
def test_a_network_that_writes_to_a_tensor_inside_a_condition_is_refused(kind):
    weights = torch.ones(2)

    def writes(x, time, label, added):
        if isinstance(added, dict):
            added.clear()
        return torch.tanh(x) + weights.mul_(0.5)[:, None]

    model = odediff.Model(writes, TABLE, "v", {"label": torch.zeros(2), "added": kind(weights)})
    with pytest.raises(ValueError, match=r"network function writes to the condition 'added'.*clone"):
        odediff.sample(model, (2, 3), steps=3)


@pytest.mark.parametrize("how", [{"steps": 3}, {"rtol": 1e-2}, {"rtol": 1e-2, "solver": solvers.Adaptive()}], ids=str)
@pytest.mark.parametrize("rows", [3, 8])
def test_rows_of_another_batch_are_refused_before_the_first_call(how, rows):
    def never(x, time, size):
        raise AssertionError("the network was called")

    model = odediff.Model(never, TABLE, "v", {"size": torch.ones(rows)}, {"size": 0.0})
    with pytest.raises(ValueError, match=f"condition 'size' has {rows} rows but the batch 4"):
        odediff.sample(model, (4, 2), **how)
    with pytest.raises(ValueError, match=f"guidance has {rows} rows but the batch 4"):
        odediff.sample(model.condition(size=1.0, guidance=torch.ones(rows)), (4, 2), **how)


def test_a_network_that_changes_its_precision_is_followed():
    network = torch.nn.Linear(3, 3)
    model = odediff.Model(Told(network), TABLE, "v")
    odediff.sample(model, (2, 3), steps=2)
    network.double()
    found, expected = (
        odediff.sample(one, (2, 3), steps=2, dtype=torch.float64)
        for one in (model, odediff.Model(Told(network), TABLE, "v"))
    )
    assert torch.equal(found, expected)


def test_a_network_whose_weights_are_replaced_is_called_in_their_precision():
    network = Told(nn.Sequential(nn.Linear(3, 3)))
    model = odediff.Model(network, TABLE, "v")
    odediff.sample(model, (2, 3), steps=2)
    weights = {name: value.double() for name, value in network.state_dict().items()}
    network.load_state_dict(weights, assign=True)
    found = odediff.sample(model, (2, 3), steps=2, dtype=torch.float64)
    assert torch.equal(found, odediff.sample(odediff.Model(network, TABLE, "v"), (2, 3), steps=2, dtype=torch.float64))
    nn.utils.parametrize.register_parametrization(network.module[0], "weight", nn.Identity())
    assert torch.equal(odediff.sample(model, (2, 3), steps=2, dtype=torch.float64), found)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("script", [lambda network: network, torch.jit.script], ids=["module", "scripted"])
def test_a_model_that_has_sampled_is_copied(script):
    model = odediff.Model(script(Told(nn.Linear(3, 3))), TABLE, "v")
    found = odediff.sample(model, (2, 3), steps=2)
    assert torch.equal(odediff.sample(copy.deepcopy(model), (2, 3), steps=2), found)


def test_a_copy_of_a_model_follows_the_precision_of_its_own_network():
    model = odediff.Model(Told(nn.Linear(3, 3)), TABLE, "v")
    found, mine = odediff.sample(model, (2, 3), steps=2), copy.deepcopy(model)
    mine.network.double()
    assert odediff.sample(mine, (2, 3), steps=2, dtype=torch.float64).isfinite().all()
    assert torch.equal(odediff.sample(model, (2, 3), steps=2), found)


def test_a_module_may_name_its_parameters_otherwise():
    class Renamed(nn.Linear):
        def named_parameters(self, *arguments, **keywords):
            return ((f"renamed.{name}", value) for name, value in super().named_parameters(*arguments, **keywords))

    assert odediff.sample(odediff.Model(Told(Renamed(3, 3)), TABLE, "v"), (2, 3), steps=2).isfinite().all()


class Told(torch.nn.Module):
    """A module of the state, as a network of state and time."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x, time):
        return self.module(x)
