import pytest
import torch

import odediff
from benchmarks import published
from benchmarks.frechet import Distance
from solvers import DDIM


@pytest.fixture
def study(tmp_path):
    return published.Study(tmp_path)


def test_a_finished_part_is_not_computed_again(study):
    def never():
        raise AssertionError

    values = torch.arange(3.0)
    assert torch.equal(study._kept("some", (1,), lambda: values), values)
    assert torch.equal(study._kept("some", (1,), never), values)
    with pytest.raises(AssertionError):
        study._kept("some", (2,), never)


def test_a_corrupt_part_is_named_with_its_remedy(study, tmp_path):
    study._kept("some", (1,), lambda: torch.zeros(1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file.name} is corrupt.*delete it"):
        study._kept("some", (1,), lambda: torch.zeros(1))


def test_features_are_those_of_the_first_samples_of_the_seed(study, monkeypatch):
    monkeypatch.setattr(published, "PART", 2)
    row = published.Row("DDIM", DDIM(eta=0.5), odediff.grid.quadratic_t)
    found = study.features(row, 3, 3)
    model = odediff.zoo.fashion_mnist().condition(label=torch.arange(3))
    images = odediff.sample(model, (3, 1, 28, 28), solver=row.solver, grid=row.grid, steps=3, seed=published.SEED)
    expected = odediff.zoo.classifier().features(images.clamp(-1, 1))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_reconstruction_error_is_that_of_images_between_0_and_1(study, monkeypatch):
    monkeypatch.setattr(published, "TEST_IMAGES", 2)
    images, labels = (v[:2] for v in odediff.zoo.test_images())
    model = odediff.zoo.fashion_mnist().condition(label=labels)
    code = odediff.encode(model, images, solver=DDIM(), grid=odediff.grid.uniform_t, steps=6)
    assert code.stats.nfe == 5
    error = ((odediff.decode(model, code) + 1) / 2 - (images + 1) / 2).square().mean()
    assert study.reconstruction(5, odediff.grid.uniform_t) == pytest.approx(float(error), rel=1e-3)


@pytest.mark.parametrize(
    ("rival", "noise", "best", "worst"),
    [(2.0, 0.1, "yes", "no"), (0.5, 0.1, "no", "yes"), (1.1, 0.1, "undecided", "undecided")],
)
def test_a_verdict_needs_two_deviations_of_the_paired_difference(capsys, rival, noise, best, worst):
    wide = torch.linspace(-3, 3, 100)  # shared by both, so that it says nothing about their difference
    own = noise * torch.tensor([1.0, -1.0]).repeat(50)
    column = {"a": Distance(1.0, 1 + wide), "b": Distance(rival, rival + wide + own)}
    for sign, answer in ((1, best), (-1, worst)):
        published.verdict("claim", "a", column, sign)
        assert f"claim: {answer} (b is {abs(rival - 1):.2f}" in capsys.readouterr().out


def test_multistep_methods_are_compared_two_by_two(study, monkeypatch, capsys):
    values = {"DPM++3M": 5.0, "UniPC-3": 3.0, "DEIS-tAB3": 4.0, "iPNDM-4": 3.0}
    shared = torch.linspace(-3, 3, 100)
    monkeypatch.setattr(
        published.Study,
        "distance",
        lambda self, row, steps, images: Distance(values[row.name], values[row.name] + shared),
    )
    published.multistep(study, 256)
    printed = capsys.readouterr().out
    assert "5 calls: DPM++3M is worse than DEIS-tAB3, +1.00 +- 0.00 (published: worse)" in printed
    assert "10 calls: UniPC-3 is better than DEIS-tAB3, -1.00 +- 0.00 (published: better)" in printed
    assert "9 calls: UniPC-3 is level with iPNDM-4, +0.00 +- 0.00 (published: worse)" in printed
