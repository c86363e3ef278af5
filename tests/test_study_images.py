"""The cells of many images: which methods get them, and that their figures are those of the library."""

import itertools

import pytest
import torch
from omegaconf import OmegaConf

import odediff
import solvers
from benchmarks import plan
from benchmarks.config import Networks, StudyConfig
from benchmarks.frechet import RESAMPLES
from benchmarks.images import features
from benchmarks.measure import measure
from benchmarks.references import References
from benchmarks.store import Entry, Store
from odediff import grid, metrics, zoo

NOWHERE = "no/such/folder"
COUNT = 260
"""More than one batch."""


@pytest.fixture
def study(tmp_path):
    choice = OmegaConf.create(
        {
            "problems": ["network_1"],
            "solvers": ["ddim", "heun", "ralston"],
            "peers": ["DDIM", "UniPCMultistep"],
            "peer_grids": ["trailing"],
            "nfe": [5, 6],
            "seeds": [0],
            "samples": {"network": 2},
            "images": {"samples": COUNT, "nfe": [5, 6], "ours": 1, "peers": 1, "also": ["heun"]},
        }
    )
    return OmegaConf.merge(OmegaConf.structured(StudyConfig), choice), Store(tmp_path)


def test_the_best_of_each_side_by_median_error_get_them_and_who_is_asked_for(study):
    config, store = study
    groups = plan.plan(config)
    medians = {
        ("ralston", 5): 0.2,
        ("ralston", 6): 0.2,
        ("ddim", 5): 0.1,
        ("ddim", 6): 0.9,
        ("UniPCMultistep 3 bh2", 5): 0.01,
    }
    for cell in groups[0]:
        store.save(cell.key, Entry({"error_median": medians.get((cell.method.name, cell.nfe), 1.0)}, {}))
    (cells,) = plan.image_cells(config, groups, store)
    # The geometric mean of 0.1 and 0.9 is 0.3: ralston is best of ours.
    assert [(cell.method.name, cell.nfe) for cell in cells] == [
        (name, nfe) for name in ("ralston", "heun", "UniPCMultistep 3 bh2") for nfe in (5, 6)
    ]
    assert all(cell.kind == "images" and cell.samples == COUNT for cell in cells)


def costs(groups):
    """What is asked of every method, by problem."""
    return {
        (cell.problem.name, cell.method.name, cell.method.grid, cell.nfe, cell.tolerance)
        for group in groups
        for cell in group
    }


def test_the_limits_of_networks_take_away_from_their_cells_alone(study):
    config, _ = study
    config.problems, config.solvers, config.peers = ["network_1", "mixture_2"], ["ddim", "ddpm", "adaptive_tsit5"], []
    config.nfe, config.tolerances, config.grids = [5, 20], [1e-1, 1e-3], ["karras", "log_snr"]
    fixed = itertools.product(config.problems, ["ddim", "ddpm"], config.grids, config.nfe, [None])
    adaptive = itertools.product(config.problems, ["adaptive_tsit5"], ["adaptive"], [None], config.tolerances)
    everything = {*fixed, *adaptive}
    few = {("network_1", "ddim", "karras", 5, None), ("network_1", "adaptive_tsit5", "adaptive", None, 1e-1)}
    assert costs(plan.plan(config)) == few | {cost for cost in everything if cost[0] == "mixture_2"}
    config.networks = Networks(grids=None, peer_grids=None, nfe=None, tolerance=None, stochastic=True)
    assert costs(plan.plan(config)) == everything


def test_guidance_halves_the_samples(study):
    config, _ = study
    config.problems = ["network_1", "network_2", "mixture_2"]
    config.samples.network, config.samples.exact = 10, 20
    counts = {cell.problem.name: cell.samples for group in plan.plan(config) for cell in group}
    assert counts == {"network_1": 10, "network_2": 5, "mixture_2": 20}


def test_no_network_no_images(study):
    config, store = study
    config.problems = ["mixture_2"]
    assert plan.image_cells(config, plan.plan(config), store) == [[]]


def test_a_cell_of_many_images_is_what_the_library_gives(study):
    config, store = study
    for cell in plan.plan(config)[0]:
        store.save(cell.key, Entry({"error_median": 0.1 if cell.method.name == "ddim" else 1.0}, {}))
    (cells,) = plan.image_cells(config, plan.plan(config), store)
    (cell,) = [cell for cell in cells if (cell.method.name, cell.nfe) == ("ddim", 5)]
    entry = measure(cell, References(store), NOWHERE)

    labels = torch.arange(COUNT) % 10
    model = zoo.fashion_mnist().condition(label=labels)
    images = odediff.sample(model, (COUNT, 1, 28, 28), solver=solvers.DDIM(), grid=grid.karras, nfe=5).clamp(-1, 1)
    frechet = metrics.frechet_distance(*metrics.feature_statistics(features(images)), *zoo.feature_statistics())
    assert entry.record["frechet"] == pytest.approx(frechet, rel=1e-3)
    resampled = entry.arrays["frechet_resampled"]
    assert len(resampled) == RESAMPLES and resampled.min() < resampled.max()
    assert entry.record["accuracy"] == pytest.approx(metrics.class_accuracy(images, labels, zoo.classifier()), abs=0.01)
    assert 0.2 < entry.record["frechet_floor"] < entry.record["frechet"]
    assert 0 < entry.record["recall"] < 1 and 0 < entry.record["precision"] < 1
    assert entry.record["memorised"] is None
    first = ((images[:10] + 1) * 127.5).round().flatten()
    assert float((torch.from_numpy(entry.arrays["images"]).float() - first).abs().max()) <= 1
