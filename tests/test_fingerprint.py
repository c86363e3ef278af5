"""A network is its weights: however it is wrapped it stays the same one, and another one is told apart."""

import copy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import odediff
from odediff.custom import Selected
from odediff.fingerprint import fingerprint, tensors_hash


class Net(nn.Linear):
    def __init__(self, weight):
        super().__init__(3, 3)
        nn.init.constant_(self.weight, weight)
        nn.init.zeros_(self.bias)

    def forward(self, x, time, gain=1.0):
        return gain * super().forward(x)


class Caller:
    def __init__(self, network):
        self.network = network

    def __call__(self, x, time):
        return self.network(x, time)


@dataclass
class Trainer:
    net: nn.Module
    steps: int = 1000

    def eps(self, x, time):
        return self.net(x, time)


class Slotted:
    __slots__ = ("_Slotted__net", "unset")

    def __init__(self, net):
        self.__net = net

    def eps(self, x, time):
        return self.__net(x, time)


ONE, OTHER = Net(0.1), Net(0.2)
OWNER_OF_ONE, OWNER_OF_OTHER = Trainer(ONE), Trainer(OTHER)


def closed_over(network):
    return lambda x, time: network(x, time)


def by_default(network):
    def called(x, time, network=network):
        return network(x, time)

    return called


def by_keyword_default(network):
    def called(x, time, *, network=network):
        return network(x, time)

    return called


def calling_itself(network):
    def called(x, time, again=True):
        return called(x, time, again=False) if again else network(x, time)

    return called


def named_one(x, time):
    return ONE(x, time)


def named_other(x, time):
    return OTHER(x, time)


def owned_one(x, time):
    return OWNER_OF_ONE.net(x, time)


def owned_other(x, time):
    return OWNER_OF_OTHER.net(x, time)


def nested_one(x, time):
    return torch.cat([(lambda row: ONE(row, time))(row) for row in x.split(1)])


def nested_other(x, time):
    return torch.cat([(lambda row: OTHER(row, time))(row) for row in x.split(1)])


class Unreadable(Slotted):
    __slots__ = ()

    @property
    def unset(self):
        raise RuntimeError("computed")

    def __getattr__(self, name):
        raise RuntimeError(name)


OWNERS = {
    "method of an owner": lambda network: Trainer(network).eps,
    "method of an owner with slots": lambda network: Slotted(network).eps,
    "method of an owner whose properties fail": lambda network: Unreadable(network).eps,
    "owner in a closure": lambda network: closed_over(Trainer(network).eps),
    "namespace": lambda network: (lambda owner: lambda x, time: owner.net(x, time))(SimpleNamespace(net=network)),
    "owner that is global": lambda network: owned_one if network is ONE else owned_other,
    "global of an inner function": lambda network: nested_one if network is ONE else nested_other,
}
"""Functions of a network that is an attribute of an object that cannot be called, or that an inner function names."""
WRAPPERS = {
    "lambda": closed_over,
    "default": by_default,
    "keyword default": by_keyword_default,
    "recursion": calling_itself,
    "partial": partial,
    "partial by keyword": lambda network: partial(lambda x, time, network: network(x, time), network=network),
    "partial of a function": lambda network: partial(lambda network, x, time: network(x, time), network),
    "object": Caller,
    "method": lambda network: network.forward,
    "method of an object": lambda network: Caller(network).__call__,
    "list": lambda network: closed_over([network][0]),
    "global": lambda network: named_one if network is ONE else named_other,
    "parallel": nn.DataParallel,
    "compiled": partial(torch.compile, backend="eager"),
    "compiled function": lambda network: torch.compile(closed_over(network), backend="eager"),
    **OWNERS,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_is_the_one_inside(wrap):
    assert fingerprint(wrap(ONE)) == fingerprint(ONE)
    assert fingerprint(wrap(OTHER)) == fingerprint(OTHER) != fingerprint(ONE)


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_a_network_with_a_wrapped_part_is_the_one_without(wrap):
    parts = ONE, wrap(nn.DataParallel(ONE)), OTHER, wrap(OTHER)
    selected = [Selected(nn.Sequential(part, Net(0.3)), "sample") for part in parts]
    one, wrapped_one, other, wrapped_other = map(fingerprint, selected)
    assert wrapped_one == one != other == wrapped_other
    assert fingerprint(Selected(wrap(ONE), "sample")) == fingerprint(Selected(ONE, "sample"))


def test_several_networks_in_a_function_all_count():
    def both(first, second):
        return lambda x, time: first(x, time) + second(x, time)

    assert fingerprint(both(ONE, OTHER)) == fingerprint(both(ONE, OTHER))
    pairs = (ONE, OTHER), (OTHER, ONE), (ONE, Net(0.3))
    assert len({fingerprint(both(*pair)) for pair in pairs}) == len(pairs)


def test_a_name_that_has_no_value_yet_holds_nothing():
    def called(x, time):
        return late(x, time)

    before = fingerprint(called)
    late = ONE
    assert before != fingerprint(called) == fingerprint(ONE)


def test_tensors_are_told_apart_by_their_names_in_any_order():
    one, other = torch.ones(2), torch.zeros(2)
    assert tensors_hash({"a": one, "b": other}) == tensors_hash({"b": other, "a": one})
    assert tensors_hash({"a": one}) != tensors_hash({"b": one})


def test_without_weights_a_network_is_its_name():
    assert fingerprint(torch.sin) != fingerprint(torch.cos)
    assert fingerprint(closed_over) == f"{__name__}.closed_over"


def test_a_function_without_weights_is_the_arrays_that_it_reads_and_not_how_often_it_was_called():
    def pulling_to(center):
        calls = 0

        def called(x, time):
            nonlocal calls
            calls += 1
            return x - torch.from_numpy(center)

        return called

    one = pulling_to(np.ones(3))
    before = fingerprint(one)
    one(torch.zeros(2, 3), 0.5)
    assert fingerprint(one) == before == fingerprint(pulling_to(np.ones(3)))
    assert before != fingerprint(pulling_to(np.array([1.0, 1.0, 2.0])))


@pytest.mark.parametrize("wrap", [closed_over, *OWNERS.values()], ids=["lambda", *OWNERS])
def test_a_code_of_another_network_behind_a_function_is_refused(wrap):
    def model(network):
        return odediff.Model(wrap(network), odediff.VPTable.linear())

    code = odediff.encode(model(ONE), torch.ones(2, 3), steps=4)
    odediff.decode(model(ONE), code)
    with pytest.raises(ValueError, match=r"model\.weights"):
        odediff.decode(model(OTHER), code)


@pytest.mark.parametrize("wrap", [OWNERS[name] for name in list(OWNERS)[:5]], ids=list(OWNERS)[:5])
def test_the_mode_and_the_precision_of_a_network_are_seen_behind_its_owner(wrap):
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double()
    model = odediff.Model(wrap(network), odediff.VPTable.linear())
    assert model.unsteady and model.dtype == torch.float64
    network.eval()
    assert not model.unsteady


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_network_that_is_changed_in_any_way_is_another_one_and_the_same_when_it_is_changed_back(dtype):
    network = Net(0.1).to(dtype)
    before = fingerprint(network)
    weights = network.weight.detach().clone()
    changes = (
        lambda: network.weight.data.mul_(2),
        lambda: network.bias.data.add_(1e-3),
        lambda: setattr(network, "weight", nn.Parameter(weights * 3)),
    )
    seen = {before}
    for change in changes:
        change()
        seen.add(fingerprint(network))
    assert len(seen) == 1 + len(changes)
    network.load_state_dict({"weight": weights, "bias": torch.zeros(3, dtype=dtype)})
    assert fingerprint(network) == before == fingerprint(Net(0.1).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 8), (64, 64)])
def test_moved_and_negated_and_doubled_weights_are_others(dtype, shape):
    layer = nn.Linear(*reversed(shape), bias=False, dtype=dtype)
    changes = (
        lambda w: w.flip(0),
        lambda w: w.flip(1),
        lambda w: w.roll(2, 0),
        lambda w: -w,
        lambda w: 2 * w,
        lambda w: torch.cat([-w[:1], w[1:]]),
    )
    weights = layer.weight.detach().clone()
    seen = {fingerprint(layer)}
    for change in changes:
        with torch.no_grad():
            layer.weight.copy_(change(weights))
        seen.add(fingerprint(layer))
    assert len(seen) == 1 + len(changes)


def test_a_network_whose_weights_are_loaded_for_each_call_is_told_by_their_shapes():
    class Offloaded(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(3, width, device="meta")

        def forward(self, x, time):
            return 0.1 * x

    model = odediff.Model(Offloaded(4), odediff.VPTable.linear())
    code = odediff.encode(model, torch.ones(2, 3), steps=4)
    assert torch.isfinite(odediff.decode(model, code)).all()
    assert fingerprint(Offloaded(4)) != fingerprint(Offloaded(5))


def test_a_network_is_hashed_once(monkeypatch):
    network, hashed = Net(0.7), []
    monkeypatch.setattr("odediff.fingerprint.tensors_hash", lambda state: hashed.append(state) or tensors_hash(state))
    assert fingerprint(network) == fingerprint(network) == fingerprint(closed_over(network))
    assert len(hashed) == 1


def test_a_state_may_hold_more_than_dense_tensors():
    class Extra(Net):
        def __init__(self, told):
            super().__init__(0.1)
            self.told = told
            self.register_buffer("sparse", torch.eye(3).to_sparse())

        def get_extra_state(self):
            return {"told": self.told, "of": torch.ones(2)}

        def set_extra_state(self, state):
            self.told = state["told"]

    assert fingerprint(Extra(1)) == fingerprint(Extra(1)) != fingerprint(Extra(2))


def test_a_fingerprint_is_the_same_inside_a_transform():
    network, found = nn.Linear(3, 3), []

    def loss(weight):
        found.append(fingerprint(network))
        return weight.sum()

    torch.func.grad(loss)(torch.ones(2))
    assert found == [fingerprint(copy.deepcopy(network))]  # a copy, whose fingerprint nothing remembers
