"""A code file is whole or refused, and a code is decoded by what encoded it, or not at all."""

import json
import math
from collections import UserDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import odediff
import solvers
from odediff import Code
from odediff.code import FORMAT, read_back, written
from odediff.conditions import equal_conditions
from odediff.fingerprint import tensors_hash
from odediff.problems import exact_model
from solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    AsynchronousLeapfrog,
    FixedPoint,
    GPMultistep,
    Heun,
    Node,
    Noise,
    Prediction,
    Prior,
    Reversible,
    Rotation,
)
from solvers.testing import Gaussian

TABLE = odediff.VPTable.linear()


class Network(torch.nn.Module):
    """One weight, one label: other weights give other pictures."""

    def __init__(self, weight: float = 0.3) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight), requires_grad=False)

    def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.weight * x + 0.1 * label.reshape(-1, 1).to(x.dtype))


class Halved(odediff.Model):
    """The same network, read in another way."""

    def predict(self, node: Node, x: torch.Tensor) -> Prediction:
        found = super().predict(node, x)
        return Prediction(found.x0, 0.5 * found.eps)


def model(weight: float = 0.3, label=1, guidance=2.0, path: odediff.Schedule = TABLE, **options) -> odediff.Model:
    conditions = {"label": label}
    return odediff.Model(Network(weight), path, conditions=conditions, null={"label": 0}, guidance=guidance, **options)


def halved() -> Halved:
    one = model()
    return Halved(one.network, one.path, conditions=one.conditions, null=one.null, guidance=one.guidance)


def bent(table: odediff.VPTable) -> odediff.VPTable:
    """A table with the same ends."""
    alphas_cumprod = table.alphas_cumprod.copy()
    alphas_cumprod[1:-1] **= 1.001
    return odediff.VPTable(alphas_cumprod)


def header_of(file: Path) -> dict:
    """The description that a file holds."""
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["odediff"])


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3)


SOLVERS = [
    DDIM(),
    Heun(Rotation(0.5)),
    BDIA(),
    EDICT(),
    OBELM(),
    AsynchronousLeapfrog(Rotation()),
    Reversible(Heun(Noise()), 0.99),
    FixedPoint(tolerance=1e-5, history=2),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("guidance", [2.0, torch.tensor([1.0, 2.0, 3.0, 4.0])], ids=["one", "each"])
def test_a_code_comes_back_from_its_file(tmp_path: Path, solver, guidance):
    labels = torch.tensor([1, 2, 1, 0])
    mine = model(label=labels, guidance=guidance)
    code = odediff.encode(mine, images(), solver=solver, steps=8)
    code.save(tmp_path / "code.safetensors")
    loaded = Code.load(tmp_path / "code.safetensors")
    assert loaded.solver == solver and loaded.digest == code.digest
    assert torch.equal(loaded.times, code.times)
    assert (loaded.stats.nfe, loaded.stats.evaluations.tolist()) == (code.stats.nfe, code.stats.evaluations.tolist())
    assert torch.equal(odediff.decode(mine, loaded), odediff.decode(mine, code))
    assert (loaded.effort is None) == (code.effort is None)
    assert [file.name for file in tmp_path.iterdir()] == ["code.safetensors"]


def test_what_encoding_cost_comes_back_from_its_file(tmp_path: Path):
    cost = odediff.encode(model(), images(), solver=Heun(Noise()), steps=6).stats
    assert (cost.steps, cost.nfe, cost.network_evaluations) == (5, 10, 20)
    odediff.encode(model(), images(), solver=Heun(Noise()), steps=6).save(tmp_path / "code.safetensors")
    loaded = Code.load(tmp_path / "code.safetensors").stats
    assert (loaded.steps, loaded.nfe, loaded.network_evaluations) == (5, 10, 20)


def test_the_steps_of_an_adaptive_encoding_come_back_from_its_file(tmp_path: Path):
    file = tmp_path / "code.safetensors"
    code = odediff.encode(model(), images(), rtol=0.1)
    code.save(file)
    loaded = Code.load(file).stats
    assert torch.equal(loaded.accepted, code.stats.accepted) and torch.equal(loaded.rejected, code.stats.rejected)

    older = {name: tensor for name, tensor in load_file(file).items() if name not in ("accepted", "rejected")}
    header = header_of(file) | {"tensors": tensors_hash(older)}
    save_file(older, file, metadata={"odediff": json.dumps(header)})
    loaded = Code.load(file).stats
    assert (loaded.accepted, loaded.rejected) == (None, None) and loaded.nfe == code.stats.nfe


def test_a_network_that_is_told_other_times_does_not_decode():
    code = odediff.encode(model(), images(), solver=DDIM(), steps=5)
    told_otherwise = replace(model(), network_time=lambda t: 500 * t)
    with pytest.raises(ValueError, match="network_time"):
        odediff.decode(told_otherwise, code)


def test_times_that_differ_in_the_sixth_digit_are_other_times():
    code = odediff.encode(model(), images(), solver=DDIM(), steps=5)
    with pytest.raises(ValueError, match="network_time"):
        odediff.decode(replace(model(), network_time=lambda t: TABLE.network_time(t) * (1 + 1e-6)), code)


def test_numbers_of_numpy_in_a_solver_are_numbers(tmp_path: Path):
    code = odediff.encode(model(), images(), solver=EDICT(np.float64(0.9)), steps=5)
    code.save(tmp_path / "code.safetensors")
    assert Code.load(tmp_path / "code.safetensors").solver == EDICT(0.9)


@pytest.mark.parametrize("part", ["partner", "stats", "guidance", "solver"])
def test_a_description_that_lost_a_part_is_refused(tmp_path: Path, part):
    file = tmp_path / "code.safetensors"
    odediff.encode(model(), images(), solver=DDIM(), steps=5).save(file)
    header = header_of(file)
    del header[part]
    save_file(load_file(file), file, metadata={"odediff": json.dumps(header)})
    with pytest.raises(ValueError, match="altered"):
        Code.load(file)


@pytest.mark.parametrize("kind", ["offsets", "nulls"])
def test_what_was_recorded_comes_back_from_its_file(tmp_path: Path, kind):
    record = odediff.direct_inversion if kind == "offsets" else odediff.negative_prompt
    code = record(model(), images(), steps=8)
    code.save(tmp_path / "code.safetensors")
    loaded = Code.load(tmp_path / "code.safetensors")
    assert torch.equal(odediff.decode(model(), loaded), odediff.decode(model(), code))


def test_a_solver_of_the_users_own_is_read_only_when_it_is_given(tmp_path: Path):
    @dataclass(frozen=True)
    class Mine(DDIM):
        pass

    odediff.encode(model(), images(), solver=Mine(), steps=5).save(tmp_path / "code")
    with pytest.raises(ValueError, match=r"made by Mine, which solvers does not export.*solver="):
        Code.load(tmp_path / "code")
    with pytest.raises(ValueError, match="solver=DDIM.* differs from the encoder's"):
        Code.load(tmp_path / "code", solver=DDIM())
    assert Code.load(tmp_path / "code", solver=Mine()).solver == Mine()


def test_a_solver_of_the_users_own_is_not_taken_for_the_one_of_its_name(tmp_path: Path):
    @dataclass(frozen=True)
    class Heun(solvers.Heun):
        """Another method, by the name of one that is exported."""

        def step(self, ode, a, b, x, state=None):
            return super().step(ode, b, a, x, state) if a.t > b.t else super().step(ode, a, b, x, state)

    for mine in (Heun(), Reversible(Heun())):
        odediff.encode(model(), images(), solver=mine, steps=5).save(tmp_path / "code")
        with pytest.raises(ValueError, match=r"made by .*test_code.*Heun, which solvers does not export.*solver="):
            Code.load(tmp_path / "code")
        with pytest.raises(ValueError, match=r"differs from the encoder's"):
            Code.load(tmp_path / "code", solver=type(mine)() if isinstance(mine, Reversible) else solvers.Heun())
        assert Code.load(tmp_path / "code", solver=mine).solver == mine


def test_a_setting_that_is_no_field_is_not_lost_on_the_way_to_a_file(tmp_path: Path):
    class Damped(DDIM):
        def __init__(self, damping):
            self.damping = damping
            super().__init__()

    code = odediff.encode(model(), images(), solver=Damped(0.1), steps=5)
    with pytest.raises(TypeError, match=r"Damped\(eta=0.0\), whose damping would be lost: .*@dataclass"):
        code.save(tmp_path / "code")
    odediff.decode(model(), code)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, length):
    file = tmp_path / "code.safetensors"
    odediff.encode(model(), images(), steps=5).save(file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match="truncated"):
        Code.load(file)


def test_an_altered_or_foreign_file_is_refused(tmp_path: Path):
    file = tmp_path / "code.safetensors"
    odediff.encode(model(), images(), steps=5).save(file)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        Code.load(file)
    save_file(load_file(file), tmp_path / "bare")
    with pytest.raises(ValueError, match="not a code"):
        Code.load(tmp_path / "bare")
    with pytest.raises(FileNotFoundError):
        Code.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (model(weight=0.4), "model.weights=.* differs"),
        (halved(), r"model.weights=.* in .*Halved differs"),
        (model(guidance=3.0), "model.guidance=3.0 differs from the encoder's 2.0.*edit=True"),
        (model(label=2), "model.conditions=.*label: 2.* differs from the encoder's .*label: 1.*edit=True"),
        (model(label=torch.tensor([1, 1, 1, 2])), "model.conditions="),
        (replace(model(), conditions={}), "model.conditions={} differs"),
        (model(path=odediff.VPTable.scaled_linear()), "model.path="),
        (model(path=bent(TABLE)), "model.path has other nodes"),
        (model(prediction="v"), "model.prediction=v"),
        (replace(model(), null={"label": 3}), "model.null="),
        (model(threshold=odediff.StaticThreshold()), "threshold"),
    ],
)
def test_another_model_does_not_decode(other, message):
    code = odediff.encode(model(), images(), steps=5)
    with pytest.raises(ValueError, match=message):
        odediff.decode(other, code)


def test_a_null_condition_that_guidance_does_not_ask_for_may_be_another():
    code = odediff.encode(model(guidance=1.0), images(), steps=5)
    other = replace(model(guidance=1.0), null={"label": 3})
    assert torch.equal(odediff.decode(other, code), odediff.decode(model(guidance=1.0), code))


def test_an_edit_changes_condition_and_guidance_on_purpose_and_nothing_else():
    code = odediff.encode(model(), images(), steps=5)
    assert torch.isfinite(odediff.decode(model(label=2, guidance=5.0), code, edit=True)).all()
    with pytest.raises(ValueError, match=r"model\.weights="):
        odediff.decode(model(weight=0.4, label=2), code, edit=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda code: {"nodes": code.nodes * 1.01},
        lambda code: {"nodes": code.nodes[1:]},
        lambda code: {"solver": Heun()},
        lambda code: {"x": code.x.double()},
        lambda code: {"x": code.x[:2]},
        lambda code: {"guidance": 1.0},
        lambda code: {"path": ""},
        lambda code: {"prediction": "v"},
        lambda code: {"weights": ""},
        lambda code: {"state": code.state._replace(node=solvers.Node(0.5, 0.5, 0.5))},
        lambda code: {"state": None},
    ],
    ids=[
        "grid",
        "shorter grid",
        "solver",
        "dtype",
        "batch",
        "guidance",
        "path",
        "prediction",
        "weights",
        "partner",
        "no pair",
    ],
)
def test_a_code_whose_description_was_changed_does_not_exist(change):
    code = odediff.encode(model(), images(), solver=OBELM(), steps=6)
    with pytest.raises(ValueError, match="differs from that of the encoding"):
        replace(code, **change(code))


def test_the_time_at_which_a_remainder_returns_is_described_too():
    code = odediff.encode(model(), images() * 1e-20, solver=BDIA(), steps=6)
    assert code.state.rest.any() and code.state.origin == code.times[0]
    with pytest.raises(ValueError, match="differs from that of the encoding"):
        replace(code, state=code.state._replace(origin=float(code.times[1])))


def test_samples_that_were_not_encoded_do_not_decode():
    code = odediff.encode(model(), images(), solver=FixedPoint(tolerance=1e-12, max_iterations=1), steps=5, throw=False)
    assert code.status.tolist() == [solvers.Status.NOT_CONVERGED] * 4
    assert torch.isnan(code.x).all() and (code.effort.residual > 1e-12).all()
    with pytest.raises(ValueError, match=r"the encoding of samples \[0, 1, 2, 3\] failed"):
        odediff.decode(model(), code)
    assert torch.isnan(odediff.decode(model(), code, throw=False)).all()
    with pytest.raises(solvers.SolveError, match="4 of 4 samples NOT_CONVERGED.*NewtonKrylov"):
        odediff.encode(model(), images(), solver=FixedPoint(tolerance=1e-12, max_iterations=1), steps=5)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_part_of_a_code_is_decoded_by_a_part_of_its_model(solver):
    mine = model(label=torch.tensor([1, 2, 1, 0]), guidance=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    mine = replace(mine, null={"label": torch.tensor([0, 0, 3, 3])})
    code = odediff.encode(mine, images(), solver=solver, steps=8)
    part = code.rows([3, 1])
    assert torch.equal(part.x, code.x[[3, 1]]) and part.digest != code.digest
    assert torch.equal(odediff.decode(mine.rows([3, 1]), part), odediff.decode(mine, code)[[3, 1]])
    with pytest.raises(ValueError, match="differs from the encoder's"):
        odediff.decode(mine, part)


@pytest.mark.parametrize("record", [odediff.direct_inversion, odediff.negative_prompt])
def test_a_part_of_what_was_recorded_is_decoded_alone(record):
    mine = model(label=torch.tensor([1, 2, 1, 0]))
    code = record(mine, images(), steps=8)
    assert torch.equal(odediff.decode(mine.rows([2]), code.rows([2])), odediff.decode(mine, code)[[2]])


def test_a_part_of_a_code_costs_what_its_samples_cost():
    mine = odediff.Model(lambda x, time: x.clip(-1, 1) ** 3, odediff.VPLinear(), continuous=True)
    code = odediff.encode(mine, torch.tensor([[0.01], [1.0], [3.0]], dtype=torch.float64), rtol=1e-4)
    evaluations = code.stats.evaluations.tolist()
    assert len(set(evaluations)) == 3
    for row, calls in enumerate(evaluations):
        stats = code.rows([row]).stats
        assert stats.nfe == calls
        for part, whole in ((stats.accepted, code.stats.accepted), (stats.rejected, code.stats.rejected)):
            assert torch.equal(part, whole[[row]])


def test_a_part_of_a_code_has_the_effort_of_its_samples():
    code = odediff.encode(model(), images(), solver=FixedPoint(tolerance=1e-12, max_iterations=1), steps=5, throw=False)
    code = replace(code, effort=code.effort._replace(status=torch.tensor([0, 1, 2, 3])))
    part = code.rows([1, 3]).effort
    assert part.status.tolist() == [1, 3] and len(part.residual) == len(part.iterations) == 2


def test_samples_are_chosen_by_number_or_by_a_mask():
    mine = model(label=torch.tensor([1, 2, 1, 0]))
    code = odediff.encode(mine, images(), solver=DDIM(), steps=8)
    for index in (torch.tensor([True, False, False, True]), [0, -1], torch.tensor([0, 3], dtype=torch.int32)):
        assert torch.equal(odediff.decode(mine.rows(index), code.rows(index)), odediff.decode(mine, code)[[0, 3]])


@pytest.mark.parametrize("index", [[4], [-5], [[0]], [0.5], "ab", 1, [True, False], [False] * 9])
def test_rows_that_a_code_does_not_have_are_named(index):
    code = odediff.encode(model(), images(), solver=DDIM(), steps=8)
    with pytest.raises((ValueError, TypeError), match="index="):
        code.rows(index)


@pytest.mark.parametrize("index", [[4], [[0]], [0.5], "ab", 1, slice(0, 2), [True, False], np.uint16([9])])
def test_rows_that_a_model_does_not_have_are_named(index):
    with pytest.raises(ValueError, match=r"index=.*must be sample numbers, from 0 to 3"):
        model(label=torch.tensor([1, 2, 1, 0])).rows(index)


def test_no_row_is_a_part_too():
    mine = model(label=torch.tensor([1, 2, 1, 0]))
    code = odediff.encode(mine, images(), solver=DDIM(), steps=8).rows([])
    assert odediff.decode(mine.rows([]), code).shape == images()[:0].shape


def test_an_edit_may_have_another_null():
    mine, code = model(guidance=3.0), odediff.encode(model(guidance=3.0), images(), solver=DDIM(), steps=8)
    other = replace(mine, null={"label": 2})
    with pytest.raises(ValueError, match=r"model\.null=.*edit=True allows"):
        odediff.decode(other, code)
    assert not torch.equal(odediff.decode(other, code, edit=True), odediff.decode(mine, code))


def test_a_null_that_was_recorded_is_no_edit():
    mine = model(guidance=3.0)
    code = odediff.negative_prompt(mine, images(), steps=8)
    with pytest.raises(ValueError, match=r"model\.null="):
        odediff.decode(replace(mine, null={"label": 2}), code, edit=True)


@pytest.mark.parametrize(("kind", "end"), [(lambda w: w, "}"), (lambda w: ["low", (w,)], r"\)]}")])
def test_conditions_of_one_shape_are_said_to_differ_by_their_values(kind, end):
    mine, other = (
        replace(
            model(),
            network=lambda x, time, label: 0.1 * x,
            conditions={"label": kind(torch.full((4, 3), float(value)))},
        )
        for value in (1, 2)
    )
    code = odediff.encode(mine, images(), solver=DDIM(), steps=8)
    with pytest.raises(
        ValueError, match=rf"tensor of shape \(4, 3\){end} differs from .* of the same shape, with other values"
    ):
        odediff.decode(other, code)


def test_samples_that_were_not_encoded_are_left_out():
    def network(x, time):
        return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, torch.tanh(x)) if len(x) == 4 else x.tanh()

    mine = odediff.Model(network, TABLE)
    code = odediff.encode(mine, images(), solver=DDIM(), steps=8, throw=False)
    with pytest.raises(ValueError, match=r"the encoding of samples \[1\] failed; decode code.rows\(others\)"):
        odediff.decode(mine, code)
    assert torch.isfinite(odediff.decode(mine.rows([0, 2, 3]), code.rows([0, 2, 3]))).all()


def test_nested_conditions_come_back_from_a_file(tmp_path: Path):
    def network(x, time, added, scale):
        return torch.tanh(x + added["text"][0] * scale.reshape(-1, 1) + added["size"][1])

    added = {"text": [torch.linspace(0, 1, 4).reshape(4, 1)], "size": (torch.ones(1, 1), torch.zeros(4, 1), "px", 3)}
    mine = odediff.Model(network, TABLE, conditions={"added": added, "scale": 0.5})
    code = odediff.encode(mine, images(), solver=DDIM(), steps=8)
    code.save(tmp_path / "code.safetensors")
    read = Code.load(tmp_path / "code.safetensors")
    assert torch.equal(odediff.decode(mine, read), odediff.decode(mine, code))
    assert type(read.conditions["added"]["size"]) is tuple and read.conditions["added"]["size"][2:] == ("px", 3)
    slashes = odediff.Model(
        lambda x, time, **given: x + given["a/b"] + given["c"]["d/e"] + given["c"]["d"]["e"],
        TABLE,
        conditions={"a/b": torch.ones(4, 1), "c": {"d/e": torch.ones(4, 1), "d": {"e": torch.zeros(4, 1)}}},
    )
    odediff.encode(slashes, images(), solver=DDIM(), steps=8).save(tmp_path / "slashes.safetensors")
    assert Code.load(tmp_path / "slashes.safetensors").conditions["c"]["d/e"].all()
    with pytest.raises(TypeError, match="the key 1 has no written form"):
        nameless = odediff.Model(lambda x, time, c: x, TABLE, conditions={"c": {1: 2}})
        odediff.encode(nameless, images(), solver=DDIM(), steps=8).save(tmp_path / "nameless.safetensors")
    other = odediff.Model(network, TABLE, conditions={"added": {**added, "text": [torch.zeros(4, 1)]}, "scale": 0.5})
    with pytest.raises(ValueError, match="differs from the encoder's"):
        odediff.decode(other, read)
    odd = odediff.Model(lambda x, time, added: x, TABLE, conditions={"added": {"text": object()}})
    with pytest.raises(TypeError, match=r"conditions\['added'\]\['text'\]: a object has no written form"):
        odediff.encode(odd, images(), solver=DDIM(), steps=8).save(tmp_path / "odd.safetensors")


def test_a_truth_value_of_numpy_is_one_of_python(tmp_path: Path):
    def network(x, time, flag, parts):
        assert flag is True and parts == [False]
        return 0.1 * x

    one, other = (odediff.Model(network, TABLE, "v", {"flag": flag, "parts": [np.False_]}) for flag in (np.True_, True))
    odediff.encode(one, images(), steps=5).save(tmp_path / "code.safetensors")
    assert odediff.decode(other, Code.load(tmp_path / "code.safetensors")).isfinite().all()


# --- between codes ------------------------------------------------------------------------------------------------


def test_slerp_is_the_great_circle_of_each_sample():
    x, y = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    found = odediff.slerp(x, y, 1 / 3)
    expected = torch.tensor([[3**0.5 / 2, 0.5], [3**0.5, 1.0]])
    torch.testing.assert_close(found, expected)
    assert torch.equal(odediff.slerp(x, y, 0.0), x)
    torch.testing.assert_close(odediff.slerp(x, y, 1.0), y)
    # Where the angle vanishes it is the straight line, and nothing is divided by its sine.
    torch.testing.assert_close(odediff.slerp(x, 2 * x, 0.25), 1.25 * x)
    assert torch.isfinite(odediff.slerp(torch.zeros_like(x), y, 0.5)).all()


def test_slerp_leaves_the_sphere_at_no_angle():
    for angle in (1e-3, 0.05, 3.0):
        x, y = (torch.tensor([[math.cos(v), math.sin(v)]], dtype=torch.float64) for v in (0.2, 0.2 + angle))
        middle = torch.tensor([[math.cos(0.2 + angle / 2), math.sin(0.2 + angle / 2)]], dtype=torch.float64)
        torch.testing.assert_close(odediff.slerp(x, y, 0.5), middle, rtol=0, atol=1e-9)


def test_slerp_between_a_point_and_itself_is_that_point():
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(odediff.slerp(x, x.clone(), 0.3), x, rtol=1e-12, atol=0)
    cosines = (x * x).sum(1) / (x.norm(dim=1) * x.norm(dim=1))
    assert (cosines > 1).any()


def test_codes_are_mixed_when_they_are_alike():
    first, second = (odediff.encode(model(label=k), images() * k, solver=DDIM(), steps=8) for k in (1, 2))
    middle = odediff.mix_codes(first, second, 0.5)
    assert torch.equal(middle.x, odediff.slerp(first.x, second.x, 0.5))
    assert torch.isfinite(odediff.decode(model(label=1), middle)).all()
    with pytest.raises(ValueError, match="differ in grid"):
        odediff.mix_codes(first, odediff.encode(model(), images(), solver=DDIM(), steps=9), 0.5)
    with pytest.raises(ValueError, match="contains more than its states"):
        odediff.mix_codes(first, odediff.encode(model(), images(), solver=BDIA(), steps=8), 0.5)
    with pytest.raises(TypeError, match="code must be an odediff.Code, not a Tensor"):
        odediff.mix_codes(first, second.x, 0.5)
    with pytest.raises(ValueError, match="weight=nan must be a finite number"):
        odediff.mix_codes(first, second, float("nan"))


def test_codes_with_null_conditions_of_their_own_are_not_mixed():
    code = odediff.negative_prompt(model(), images(), steps=4)
    with pytest.raises(ValueError, match="contains more than its states"):
        odediff.mix_codes(code, code, 0.5)


def test_a_sample_that_either_of_two_mixed_codes_lost_is_lost():
    whole = odediff.encode(model(), images(), solver=DDIM(), steps=8)
    lost = replace(whole, status=torch.tensor([0, 0, int(solvers.Status.NON_FINITE), 0]))
    for mixed in (odediff.mix_codes(whole, lost, 0.5), odediff.mix_codes(lost, whole, 0.5)):
        assert mixed.status.equal(lost.status)


# --- every solver, and what a file must hold ----------------------------------------------------------------------

GAUSSIAN = exact_model(Gaussian(mean=0.5, deviation=0.6), odediff.VPTable.linear())
EXPORTED = [getattr(solvers, name) for name in solvers.__all__]
METHODS = [
    solver
    for kind in EXPORTED
    if isinstance(kind, type) and issubclass(kind, solvers.Solver) and not kind.__abstractmethods__
    for solver in (kind.variants() if kind is not solvers.RungeKutta else [])
    if solver.deterministic
]


@pytest.mark.parametrize("solver", METHODS, ids=repr)
def test_every_solver_is_written_and_read_back(solver):
    assert read_back(written(solver)) == solver


def test_a_code_of_the_default_before_it_followed_larger_errors_between_close_nodes_is_read(tmp_path: Path):
    file, before = tmp_path / "code.safetensors", GPMultistep(prior=Prior(close_error=0.0))
    odediff.encode(model(), images(), solver=before, steps=8).save(file)
    names = (
        "class scale scale_spread decision decision_spread decision_variance error error_width error_bounded noise "
        "spacing smoothness floor mean common common_scale"
    )
    assert list(header_of(file)["solver"]["prior"]) == names.split()
    assert Code.load(file).solver == before


def test_two_parts_of_a_code_may_be_one_tensor(tmp_path: Path):
    x = 0.5 + 0.6 * torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    code = odediff.encode(GAUSSIAN, x, solver=Reversible(), steps=9)
    code.save(tmp_path / "code.safetensors")
    again = odediff.decode(GAUSSIAN, Code.load(tmp_path / "code.safetensors"))
    assert torch.equal(again, odediff.decode(GAUSSIAN, code))


def test_two_null_conditions_of_a_code_may_be_one_tensor(tmp_path: Path):
    null = torch.arange(4.0).reshape(1, 4)
    code = replace(odediff.encode(model(), images(), steps=5), nulls={"label": null, "other": null})
    code.save(tmp_path / "code.safetensors")
    loaded = Code.load(tmp_path / "code.safetensors").nulls
    assert torch.equal(loaded["label"], null) and torch.equal(loaded["other"], null)


def test_a_whole_number_is_as_good_a_guidance(tmp_path: Path):
    def network(x, time, shift):
        return 0.1 * x + shift[:, None]

    model = odediff.Model(network, odediff.VPTable.linear(), conditions={"shift": 1.0}, null={"shift": 0.0}, guidance=3)
    code = odediff.encode(model, torch.ones(2, 3), solver=BDIA(), steps=9)
    code.save(tmp_path / "code.safetensors")
    assert Code.load(tmp_path / "code.safetensors").digest == code.digest


def test_a_row_for_each_sample_is_as_good_as_one_number():
    code = odediff.encode(model(), images(), solver=BDIA(), steps=9)
    each = model(label=torch.ones(4, dtype=torch.int64), guidance=torch.full((4,), 2.0))
    assert torch.allclose(odediff.decode(each, code), odediff.decode(model(), code), atol=1e-5)
    with pytest.raises(ValueError, match="guidance.*differs"):
        odediff.decode(model(guidance=torch.tensor([2.0, 2.0, 2.0, 3.0])), code)


def test_one_row_for_all_samples_is_as_good_as_a_row_for_each():
    code = odediff.encode(model(label=torch.tensor([1])), images(), solver=BDIA(), steps=9)
    each = model(label=torch.ones(4, dtype=torch.int64))
    assert torch.allclose(odediff.decode(each, code), odediff.decode(model(label=torch.tensor([1])), code), atol=1e-5)
    with pytest.raises(ValueError, match="conditions.*differs"):
        odediff.decode(model(label=torch.tensor([2])), code)


def test_conditions_in_lists_are_compared_one_by_one():
    def listed(*values):
        given = {"parts": [torch.full((4,), value) for value in values]}
        return odediff.Model(lambda x, time, parts: 0.1 * x + sum(parts)[:, None], TABLE, conditions=given)

    code = odediff.encode(listed(0.1, 0.2), images(), solver=BDIA(), steps=9)
    assert torch.isfinite(odediff.decode(listed(0.1, 0.2), code)).all()
    for other in (listed(0.1, 0.3), listed(0.1)):
        with pytest.raises(ValueError, match="conditions.*differs"):
            odediff.decode(other, code)


def test_a_file_without_its_digest_is_refused(tmp_path: Path):
    file = tmp_path / "code.safetensors"
    odediff.encode(GAUSSIAN, torch.ones(2, 3), solver=BDIA(), steps=9).save(file)
    save_file(load_file(file), file, metadata={"odediff": json.dumps(header_of(file) | {"digest": ""})})
    with pytest.raises(ValueError, match="altered: its description"):
        Code.load(file)


def test_a_file_of_another_format_is_refused(tmp_path: Path):
    file = tmp_path / "code.safetensors"
    odediff.encode(model(), images(), steps=5).save(file)
    save_file(load_file(file), file, metadata={"odediff": json.dumps(header_of(file) | {"format": FORMAT + 1})})
    with pytest.raises(ValueError, match=f"has format {FORMAT + 1}, but this version reads {FORMAT};"):
        Code.load(file)


def test_a_file_of_an_earlier_format_is_refused(tmp_path: Path):
    file = tmp_path / "code.safetensors"
    odediff.encode(model(), images(), steps=5).save(file)
    save_file(load_file(file), file, metadata={"odediff": json.dumps(header_of(file) | {"format": FORMAT - 1})})
    with pytest.raises(ValueError, match=f"has format {FORMAT - 1}, but this version reads {FORMAT};"):
        Code.load(file)


def test_the_network_times_of_a_code_are_those_that_the_network_was_told():
    told = []

    def network(x, time):
        told.append(float(time[0]))
        return 0.1 * x

    remapped = odediff.Model(network, TABLE).remap(odediff.VE())
    code = odediff.encode(remapped, images(torch.float64), solver=DDIM(), steps=5)
    assert code.nodes[:-1, 3].tolist() == pytest.approx(told, rel=1e-12)


def test_a_code_keeps_its_own_conditions():
    label = torch.tensor([1.0, 2.0])
    model = odediff.Model(
        lambda x, time, c: 0.1 * x + 0.1 * c[:, None], odediff.VPTable.linear(), conditions={"c": label}
    )
    code = odediff.encode(model, torch.ones(2, 3), solver=solvers.AsynchronousLeapfrog(), steps=10)
    label += 5
    with pytest.raises(ValueError, match="conditions.*differs from the encoder's"):
        odediff.decode(model, code)


@pytest.mark.parametrize("kind", [lambda w: [w], lambda w: ({"deep": w},), lambda w: UserDict(deep=w)])
def test_a_code_keeps_its_own_tensors_inside_conditions(kind):
    weights = torch.ones(2)
    model = odediff.Model(lambda x, time, parts: 0.1 * x, TABLE, conditions={"parts": kind(weights)})
    code = odediff.encode(model, torch.ones(2, 3), steps=5)
    weights += 5
    assert equal_conditions(dict(code.conditions), {"parts": kind(torch.ones(2))})


@pytest.mark.parametrize("solver", [BDIA(), FixedPoint(tolerance=1e-5, history=2)], ids=repr)
def test_a_code_moves_to_another_device_and_back(solver):
    code = odediff.encode(model(), images(), solver=solver, steps=4)
    there = code.to("meta")
    assert there.x.is_meta
    assert there.state is None or all(one.is_meta for one in there.state if isinstance(one, torch.Tensor))
    assert there.digest == code.digest and there.times.device.type == "cpu"
    back = code.to("cpu")
    assert torch.equal(odediff.decode(model(), back), odediff.decode(model(), code))


def test_null_conditions_that_were_recorded_move_with_their_code():
    code = odediff.negative_prompt(model(), images(), steps=4)
    assert code.nulls and all(null.is_meta for null in code.to("meta").nulls.values())


ROW = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (ROW, None, False),
        (ROW, "a word", False),
        (ROW, [1.0, 1.0], False),
        (ROW, {"a": ROW}, False),
        (ROW, torch.ones(1, 3), False),
        (ROW, torch.ones(4, 2), True),
        (torch.tensor([3, 3]), 3, True),
        (torch.tensor([3, 4]), 3, False),
        (torch.tensor([3, 3]), torch.tensor([3, 3, 3]), False),
        ({"a": [ROW, "word"]}, {"a": [ROW, "word"]}, True),
        ({"a": [ROW, "word"]}, {"a": ["word", ROW]}, False),
        ({"a": ROW}, {"b": ROW}, False),
        (np.ones(2), np.ones(2).tolist(), False),
        (None, None, True),
        (math.nan, float("nan"), True),
        (math.nan, 1.0, False),
        (torch.tensor([[1.0, math.nan]]), torch.tensor([[1.0, math.nan]]).expand(3, 2), True),
        (torch.tensor([[1.0, math.nan]]), torch.tensor([[math.nan, 1.0]]), False),
        (torch.tensor([[1.0, math.nan]]), torch.tensor([[1.0, 2.0]]), False),
        (torch.tensor([math.nan]), math.nan, True),
    ],
)
def test_any_two_conditions_can_be_compared(one, other, equal):
    assert equal_conditions(one, other) is equal and equal_conditions(other, one) is equal


@pytest.mark.parametrize(("one", "other"), [(torch.ones(4, 2), None), ("a word", torch.ones(4, 2))])
def test_a_condition_of_another_kind_is_named(one, other):
    def network(x, time, prompt):
        return 0.1 * x

    def under(prompt):
        return odediff.Model(network, TABLE, conditions={"prompt": prompt})

    code = odediff.encode(under(one), images(), solver=DDIM(), steps=3)
    with pytest.raises(ValueError, match=r"model\.conditions=.* differs from the encoder's"):
        odediff.decode(under(other), code)
