"""Memory of states that are gone is used again, and that of no other."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import dlpack

import odediff
from solvers import DDIM, DPMpp, GPMultistep, Heun, NoiseStream, UniPC, combine, solve
from solvers.large import LEAST, reusing, spare
from solvers.testing import mild_mixture

TIMES = torch.linspace(1.3, 0.2, 6, dtype=torch.float64)


def large(seed=0):
    """Samples in the plane of the mild mixture: a state just above the limit."""
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


def test_memory_that_another_process_may_hold_is_not_used_again():
    x = large()
    with torch.no_grad(), reusing(x):
        sent = spare([x]).share_memory_()
        place = sent.data_ptr()
        del sent
        assert spare([x]).data_ptr() != place


def test_memory_of_inference_is_used_in_inference_alone():
    x = large()
    with torch.no_grad(), reusing(x):
        with torch.inference_mode():
            assert combine((1.0, x), (3.0, x)).is_inference()
        outside = combine((1.0, x), (3.0, x))
    assert torch.equal(outside, x + 3 * x)
    assert not outside.is_inference()


def test_threads_have_memory_of_their_own():
    x = large()
    with torch.no_grad(), reusing(x), ThreadPoolExecutor(1) as pool:
        assert spare([x]) is not None
        assert pool.submit(copy_context().run, torch.no_grad()(spare), [x]).result() is None


def test_small_states_derivatives_and_other_layouts_are_left_to_torch():
    x = large()
    with reusing(x):
        assert spare([x]) is None
        with torch.no_grad():
            assert spare([x[:10]]) is None
            assert spare([x.T]) is None
            assert spare([x, x.float()]) is None
            assert spare([x.to("meta")]) is None
            with torch.device("meta"):
                assert spare([x]).is_cpu
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


def test_the_derivative_by_a_network_is_that_of_every_sample():
    """Forward derivatives do without the graph that no_grad() forbids."""
    noise = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))

    def tangent(noise):
        with forward_ad.dual_level():
            slope = forward_ad.make_dual(torch.tensor(0.1), torch.tensor(1.0))
            model = odediff.Model(lambda x, time: slope * x, odediff.VPTable.linear())
            return forward_ad.unpack_dual(odediff.sample(model, noise=noise, solver=DPMpp(3), steps=5)).tangent

    assert noise.nbytes > LEAST > noise[:1].nbytes
    assert torch.equal(tangent(noise), torch.cat([tangent(one) for one in noise.split(1)]))
    with torch.no_grad(), reusing(noise):
        found = torch.func.jvp(lambda c: combine((1.0, noise), (3.0, c * noise)), (torch.ones(()),), (torch.ones(()),))
    torch.testing.assert_close(found, (4 * noise, 3 * noise))


def test_a_network_may_keep_what_it_is_given():
    seen = []

    def network(x, time):
        seen.append((x, x.clone()))
        return 0.1 * x

    noise = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    odediff.sample(odediff.Model(network, odediff.VPTable.linear()), noise=noise, solver=DPMpp(3), steps=5)
    assert all(torch.equal(*pair) for pair in seen)
