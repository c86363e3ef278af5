"""Memory of states that are gone is used again, and that of no other."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import dlpack

import odediff
from solvers import DDIM, DPMpp, GPMultistep, Heun, NoiseStream, UniPC, solve
from solvers.large import LEAST, reusing, spare
from solvers.testing import mild_mixture

TIMES = torch.linspace(1.3, 0.2, 6, dtype=torch.float64)


def large(seed=0):
    """Two thousand samples of the mild mixture's plane: a state above the limit."""
    x = torch.randn(LEAST // 16 + 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert x.nbytes > LEAST
    return x


HOLDERS = {
    "the tensor": lambda x: x,
    "a view": lambda x: x[3:5],
    "an alias": lambda x: x.detach(),
    "an array": lambda x: x.numpy(),
    "its storage": lambda x: x.untyped_storage(),
    "another library": dlpack.to_dlpack,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_memory_that_somebody_holds_is_not_used_again(hold):
    x = large()
    with torch.no_grad(), reusing(x):
        place = spare([x]).data_ptr()
        assert spare([x]).data_ptr() == place
        held = hold(spare([x]))
        assert spare([x]).data_ptr() != place
        del held
        assert spare([x]).data_ptr() == place


def test_small_states_derivatives_and_other_layouts_are_left_to_torch():
    x = large()
    with reusing(x):
        assert spare([x]) is None
        with torch.no_grad():
            assert spare([x[:10]]) is None
            assert spare([x.T]) is None
            assert spare([x, x.float()]) is None
    with torch.no_grad():
        assert spare([x]) is None


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=1.0), DPMpp(3), UniPC(3), GPMultistep(), Heun()], ids=str)
def test_large_states_have_the_bits_of_small_ones(solver):
    problem, x = mild_mixture(), large()
    with torch.no_grad():
        whole = solve(problem, solver, x, TIMES, stream=NoiseStream(1), trajectory=True).trajectory
        first = solve(problem, solver, x[:50], TIMES, stream=NoiseStream(1), trajectory=True).trajectory
    assert torch.equal(whole[:, :50], first)
    assert torch.equal(whole[0], large())


def test_states_that_a_callback_keeps_stay_as_they_were():
    problem, x, kept, copies = mild_mixture(), large(), [], []

    def keep(node, state):
        kept.append(state)
        copies.append(state.clone())

    with torch.no_grad():
        half = solve(problem, DPMpp(3, lower_order_below=0), x, TIMES[:4], callback=keep)
        rest = [solve(problem, DPMpp(3, lower_order_below=0), half.x, TIMES[3:], state=half.state).x for _ in range(2)]
    assert all(map(torch.equal, kept, copies))
    assert torch.equal(*rest)


def test_large_states_are_differentiated():
    problem, x = mild_mixture(), large()
    with torch.no_grad():
        plain = solve(problem, DPMpp(2), x, TIMES).x
    tracked = x.clone().requires_grad_()
    found = solve(problem, DPMpp(2), tracked, TIMES).x
    assert torch.equal(found, plain)
    (gradient,) = torch.autograd.grad(found.sum(), tracked)
    with torch.no_grad(), forward_ad.dual_level():
        found = solve(problem, DPMpp(2), forward_ad.make_dual(x, torch.ones_like(x)), TIMES).x
        tangent = forward_ad.unpack_dual(found).tangent
    assert math.isclose(float(tangent.sum()), float(gradient.sum()), rel_tol=1e-9)


def test_a_network_may_keep_what_it_is_given():
    seen = []

    def network(x, time):
        seen.append((x, x.clone()))
        return 0.1 * x

    noise = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    odediff.sample(odediff.Model(network, odediff.VPTable.linear()), noise=noise, solver=DPMpp(3), steps=5)
    assert all(torch.equal(*pair) for pair in seen)
