"""On a CUDA device: every method does there what it does on the CPU, and a fixed grid waits for the device once."""

import warnings

import numpy as np
import pytest
import torch

import odediff
import solvers
from benchmarks.methods import exported_variants
from odediff import app, zoo
from solvers import DDIM, DDPM, AdaptiveAdams, GPMultistep, NoiseStream, Solver, solve
from solvers.philox import normal
from solvers.testing import SPAN, mild_mixture, starting_points, uneven_times

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SOLVERS = exported_variants()
WAYS = [(solver, way) for solver in SOLVERS for way in ((1, -1) if solver.deterministic else (1,))]
"""Towards the data, and the deterministic ones back."""
LOOKING = (solvers.FixedPoint, solvers.GaussLegendre, solvers.NewtonKrylov, solvers.TrajectoryInverse)
"""Methods that look at what is left of an equation."""
ON_GRIDS = [s for s in SOLVERS if type(s).solve is Solver.solve and not isinstance(getattr(s, "solver", s), LOOKING)]
SHAPE = (3, 2, 8, 8)
T = 1000


@pytest.fixture(autouse=True)
def exact_arithmetic():
    """No rounding to TensorFloat-32, so that devices can be compared."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def network(x, time, label=None):
    """A smooth field that knows its samples' labels; nothing in it waits for the device."""
    scale = 1 + time.view(-1, 1, 1, 1) / T
    shift = 0 if label is None else 0.1 * label.view(-1, 1, 1, 1)
    return torch.tanh(x / scale + shift)


def model(**settings):
    return odediff.Model(network, odediff.VPTable.linear(), **settings)


@pytest.mark.parametrize(("solver", "direction"), WAYS)
def test_a_solver_takes_the_same_way(solver, direction):
    """In float64, where devices differ in the last bits of elementary functions alone."""
    times = uneven_times(*SPAN[::direction], 10)
    stream = None if solver.deterministic else NoiseStream(7)
    there, here = (
        solve(mild_mixture(), solver, starting_points().to(device), times, stream=stream) for device in ("cuda", "cpu")
    )
    assert there.x.is_cuda and not there.status.is_cuda
    assert torch.equal(there.stats.evaluations, here.stats.evaluations)
    torch.testing.assert_close(there.x.cpu(), here.x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("solver", ON_GRIDS, ids=str)
def test_a_fixed_grid_waits_for_the_device_once(solver, guidance):
    """Six steps wait as often as three: at the end, for the statuses."""
    guided = model(conditions={"label": 3}, null={"label": 0}, guidance=guidance)
    assert waits(guided, solver, 6) == waits(guided, solver, 3) == 1


def test_neither_do_conditions_in_the_hosts_memory():
    rows = {"label": torch.tensor([1, 2, 3])}
    guided = model(conditions=rows, null={"label": torch.zeros(3)}, guidance=torch.tensor([1.0, 2.0, 3.0]))
    assert waits(guided, DDIM(), 6) == waits(guided, DDIM(), 3) == 1


def test_neither_do_compiled_sums():
    assert waits(model(), DDIM(), 6, compile=True) == waits(model(), DDIM(), 3, compile=True) == 1


def waits(guided, solver, steps, **settings):
    """How often a solve waits for the device, the second time."""
    ode = odediff.probability_flow(guided)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).cuda()
    times = odediff.grid.log_snr(guided.path, steps)
    stream = None if solver.deterministic else NoiseStream(0)
    solve(ode, solver, x, times, stream=stream, **settings)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solve(ode, solver, x, times, stream=stream, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("solver", [DDIM(), DDPM(), solvers.Heun(), GPMultistep(), AdaptiveAdams()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_fixes_a_sample_on_every_device(solver, dtype):
    settings = {"rtol": 1e-3} if isinstance(solver, AdaptiveAdams) else {"steps": 10}
    there, here = (
        odediff.sample(model(), SHAPE, solver=solver, seed=3, dtype=dtype, device=device, **settings)
        for device in ("cuda", "cpu")
    )
    assert there.is_cuda and there.dtype is dtype
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-3 if dtype is torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_that_of_the_cpu_bit_for_bit(dtype):
    drawn, _ = NoiseStream(5, samples=(4, 9)).draw(torch.empty(2, 40_007, dtype=dtype, device="cuda"))
    assert torch.equal(drawn.cpu(), torch.from_numpy(normal(5, np.array([4, 9]), 0, 40_007)).to(dtype))


@pytest.mark.parametrize("solver", [AdaptiveAdams(), solvers.Adaptive(solvers.Dopri5()), GPMultistep()], ids=str)
def test_a_sample_has_the_same_bits_alone(solver):
    times = [1.35, 0.4]
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64).cuda()
    together = solve(mild_mixture(), solver, x, times)
    for i in range(0, 64, 9):
        alone = solve(mild_mixture(), solver, x[i : i + 1], times)
        assert torch.equal(together.x[i], alone.x[0])
        assert together.stats.evaluations[i] == alone.stats.evaluations[0]


@pytest.mark.parametrize("solver", [DDIM(), solvers.DPMpp(3), solvers.UniPC(3), GPMultistep()], ids=str)
def test_compiled_sums_equal_separate_ones(solver):
    ode, times = odediff.probability_flow(model()), odediff.grid.log_snr(model().path, 8)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cuda()
    with torch.no_grad():
        compiled, plain = (solve(ode, solver, x, times, compile=fused).x for fused in (True, False))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "history"), [(DDIM(), 1), (solvers.DPMpp(3), 3), (solvers.UniPC(3), 4), (GPMultistep(), 4)], ids=str
)
def test_memory_is_the_history_and_two_states(solver, history):
    x = torch.randn(16, 4, 128, 128, device="cuda")
    small = odediff.Model(lambda x, time: 0.1 * x, odediff.VPTable.linear())
    ode, times = odediff.probability_flow(small), odediff.grid.log_snr(small.path, 12)[:-1]
    with torch.no_grad():
        solve(ode, solver, x, times)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        solve(ode, solver, x, times)
    assert (torch.cuda.max_memory_allocated() - before) / x.nbytes <= history + 2.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision(dtype):
    half, whole = (zoo.fashion_mnist("cuda", kind).condition(label=3) for kind in (dtype, torch.float32))
    difference = odediff.sample(half, (4, 1, 28, 28), nfe=8) - odediff.sample(whole, (4, 1, 28, 28), nfe=8)
    assert difference.abs().mean() < 0.03


def test_the_embedded_network_there_and_back():
    """The images of the CPU, and back to them exactly by a reversible method."""
    there, here = (zoo.fashion_mnist(device).condition(label=3, guidance=2.0) for device in ("cuda", "cpu"))
    images = odediff.sample(there, (4, 1, 28, 28), nfe=10)
    assert images.is_cuda
    torch.testing.assert_close(images.cpu(), odediff.sample(here, (4, 1, 28, 28), nfe=10), rtol=0, atol=2e-2)
    code = odediff.encode(there, images.double(), solver=solvers.AsynchronousLeapfrog(), steps=10)
    assert (odediff.decode(there, code) - images).abs().max() < 1e-9


def test_the_command_line_samples_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["odediff", "task=sample", "device=cuda", "samples=4", "nfe=5", "hydra.run.dir=out"]
    monkeypatch.setattr("sys.argv", words)
    app.main()
    assert list((tmp_path / "out").glob("*.png"))
