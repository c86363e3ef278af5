"""The comparison on small networks, here trained for two steps: whole, trained once, and what the library gives."""

import sys

import numpy as np
import pytest
import torch

import odediff
from benchmarks import small_networks
from odediff.accuracy import sample_errors


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(small_networks, "STEPS", 2)
    monkeypatch.setattr(small_networks, "CALLS", (5,))
    monkeypatch.setattr(small_networks, "SCHEDULERS", ("DEISMultistep",))
    monkeypatch.setattr(small_networks, "LAWS", {name: small_networks.LAWS[name] for name in ("moons", "mixture")})


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["small_networks", *arguments])
    threads = torch.get_num_threads()
    try:
        small_networks.main()
    finally:
        torch.set_num_threads(threads)


def test_every_network_is_trained_once_and_compared(monkeypatch, tmp_path, capsys):
    run(monkeypatch, f"--folder={tmp_path}", "--samples=4")
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert {file.stem for file in written} == set(small_networks.LAWS)
    first = capsys.readouterr().out
    assert first.count("DEISMultistep") == len(small_networks.LAWS)
    run(monkeypatch, f"--folder={tmp_path}", "--samples=4")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written
    assert capsys.readouterr().out == first


def test_a_row_is_what_the_library_gives(tmp_path):
    problem = small_networks.TrainedProblem("moons", tmp_path)
    (row,) = small_networks.rows_of(problem, 8)
    noise = problem.noise(small_networks.SEED, range(8))
    found = odediff.sample(problem.model(range(8)), noise=noise, nfe=5)
    errors = sample_errors(found, problem.reference(noise).x, problem.deviation).numpy()
    assert row[:2] == ("moons", 5)
    np.testing.assert_allclose(row[2:4], np.quantile(errors, [0.5, 0.9]), rtol=1e-6)


def test_one_sample_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, f"--folder={tmp_path}", "--samples=1")
    assert "--samples 1" in capsys.readouterr().err and not list(tmp_path.iterdir())
