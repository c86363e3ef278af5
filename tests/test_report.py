"""The report: what it says against tables whose answers are known, and how a browser shows it."""

import math
import re
import xml.etree.ElementTree as ElementTree

import chromium
import numpy as np
import pytest
from PIL import Image

from benchmarks import before_after, figures, report, series, sheets, summary, theme
from benchmarks.collect import ranks
from benchmarks.study import Study
from odediff.ranking import Ranked

SAMPLES = 21
SPREAD = np.exp(np.linspace(-0.5, 0.5, SAMPLES))
"""Errors of a cell in units of their median, which is the middle one."""
VERSIONS = {"version_odediff": "0.1.0", "version_torch": "2.13.0", "version_k": None}


def row(problem, method, nfe, median, *, source="odediff", grid="karras", calls=None, seed=0, tolerance=None, **more):
    """A row of the table; ``median`` None makes a method that draws noise."""
    network = problem.startswith("network")
    errors = None if median is None else (median * SPREAD).astype("float32")
    return {
        "status": "ok",
        "kind": "flow",
        "problem": problem,
        "purpose": "reporting" if network else "choosing",
        "family": "network" if network else "exact",
        "dimension": 784 if network else 2,
        "guidance": 2.0,
        "schedule": "VPTable(T=1000)",
        "dtype": "float64",
        "source": source,
        "method": method,
        "grid": grid,
        "closing": "denoise" if source == "odediff" else "its own",
        "deterministic": median is not None,
        "nfe": nfe,
        "tolerance": tolerance,
        "seed": seed,
        "samples": SAMPLES,
        "calls": float(nfe if calls is None else calls),
        "seconds": 0.21 * (nfe or calls),
        "errors": errors,
        "error_median": median,
        "reference_error": None if median is None else 1e-3,
        **VERSIONS,
        **more,
    }


def table():
    """Two problems under 5 and 10 calls: heun is first but for 5 calls on the network, where a peer is."""
    rows = []
    for problem in ("mixture_2", "network_1"):
        for seed in (0, 1):
            for nfe in (5, 10):
                more = {"seed": seed, "round_trip": 1 / nfe if seed == 0 else None}
                if problem == "network_1":
                    rng = np.random.default_rng(nfe)
                    more |= {
                        "images": rng.integers(0, 256, 10 * 784, dtype=np.uint8),
                        "kernel_distance": 0.1 / nfe,
                        "accuracy": 1 - 1 / nfe,
                    }
                else:
                    more |= {"sliced_wasserstein": 1 / nfe, "sliced_wasserstein_floor": 0.09}
                rows += [
                    row(problem, "ddim", nfe, 2 / nfe, grid="log_snr", **more),
                    row(problem, "ddim", nfe, 1.5 / nfe, **more),
                    row(problem, "heun", nfe, (8 if problem == "network_1" else 2) / nfe**2, calls=nfe - 1, **more),
                    row(problem, "ddpm", nfe, None, **more | {"round_trip": None}),
                    row(problem, "DPMSolverMultistep ++2M euler at final", nfe, 1 / nfe, source="diffusers", **more),
                    row(problem, "DDIM", nfe, 1.5 / nfe, source="diffusers", grid="trailing", **more),
                ]
            for tolerance in (0.1, 0.01):
                calls = round(3 / tolerance**0.5)
                rows.append(
                    row(
                        problem,
                        "torchdiffeq",
                        None,
                        tolerance,
                        grid="adaptive",
                        calls=calls,
                        tolerance=tolerance,
                        seed=seed,
                    )
                )
    measured = {
        "frechet": 2.0,
        "frechet_resampled": [1.9, 2.0, 2.1],
        "frechet_floor": 0.2,
        "precision": 0.9,
        "recall": 0.8,
        "memorised": None,
        "accuracy": 1.0,
    }
    rows.append(row("network_1", "ddim", 10, None, **measured) | {"kind": "images", "samples": 2048})
    measured |= {"frechet": 2.5, "frechet_resampled": [2.3, 2.5, 2.7]}
    rows.append(row("network_1", "heun", 10, None, **measured) | {"kind": "images", "samples": 2048})
    return [*rows, row("mixture_2", "rk4", 5, None) | {"status": "ValueError: nfe=5 is too few <here>"}]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(table(), folder, "python -m benchmarks.nfe_quality nfe=[5,10]")
    return folder


def place(name, rank, value):
    return Ranked(name, rank, value, value, value, 1.0, 1.0)


NAMES = {
    "a": series.Name("odediff", "a", "karras", "denoise"),
    "b": series.Name("odediff", "b", "karras", "denoise"),
    "p": series.Name("diffusers", "DPMSolverMultistep ++2M", "lu", "its own"),
}


def test_the_interval_of_a_frechet_distance_over_the_best_is_paired(written):
    page = (written / report.PAGE).read_text(encoding="utf-8")
    # 0.5 more, and 1.96 deviations of the differences 0.4, 0.5 and 0.6 on either side.
    assert "+0.30 to +0.70" in page


def test_a_method_stands_in_its_best_setting():
    problem = series.problems(table())[0]
    chosen = {series.name_of(r) for r in series.best_settings(problem)}
    assert {(n.method, n.grid) for n in chosen if n.method == "ddim"} == {("ddim", "karras")}
    assert len({(n.source, n.method) for n in chosen}) == len(chosen) == 6


def test_curves_hold_pooled_medians_over_counted_calls():
    problem = series.problems(table())[0]
    chosen = series.best_settings(problem)
    places = {nfe: ranked for (_, nfe), ranked in ranks(chosen).items()}
    curves = {curve.name.method: curve for curve in series.error_curves(chosen, places)}
    heun = curves["heun"].points
    assert [point.calls for point in heun] == [4, 9]
    assert [point.value for point in heun] == pytest.approx([2 / 25, 2 / 100])
    assert [point.seconds for point in heun] == pytest.approx([0.05, 0.1])
    assert all(point.low <= point.value <= point.high for curve in curves.values() for point in curve.points)
    assert [point.value for point in curves["torchdiffeq"].points] == pytest.approx([0.1, 0.01])
    assert "ddpm" not in curves


def test_means_have_the_range_of_the_seeds():
    rows = [
        row("mixture_2", "ddpm", 5, None, seed=seed, energy_distance=value) for seed, value in enumerate((1.0, 3.0))
    ]
    (curve,) = series.mean_curves(rows, "energy_distance")
    assert curve.points[0][2:5] == (2.0, 1.0, 3.0)


def test_the_best_over_all_ceilings_comes_first():
    def curve(method, *values):
        points = [series.Point(nfe, 1.0, v, v, v, nfe) for nfe, v in zip((5, 10), values, strict=True)]
        return series.Curve(NAMES["a"]._replace(method=method), tuple(points))

    curves = series.by_quality([curve("worse", 1.0, 0.9), curve("fails", 0.1, math.inf), curve("best", 2.0, 0.1)])
    assert [c.name.method for c in curves] == ["best", "worse", "fails"]
    far = series.excess(curves)
    assert far[curves[0].name] == pytest.approx(math.log(20) / 2)


def test_the_baseline_always_has_a_colour():
    study = Study(table())
    assert list(series.featured(study.errors.values(), ["#1"])) == ["ddim"]
    assert list(series.featured(study.errors.values(), ["#1", "#2"])) == ["heun", "ddim"]


def test_shown_ceilings():
    rows = [{"nfe": nfe} for nfe in (None, 6, 5, 20)]
    assert series.shown_ceilings(rows, (5, 10, 20, 50)) == [5, 20]
    assert series.shown_ceilings([{"nfe": 7}, {"nfe": 3}, {"nfe": 5}], (5, 10)) == [3, 5]


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ([10.0, 60.0], [10.0, 60.0]),
        ([50.0, 50.0], [40.0, 60.0]),
        ([60.0, 50.0], [65.0, 45.0]),
        ([0.0, 1.0, 2.0], [0.0, 20.0, 40.0]),
        ([99.0, 100.0, 20.0], [80.0, 100.0, 20.0]),
    ],
)
def test_spread_is_the_closest_arrangement(wanted, expected):
    assert figures.spread(wanted, 20.0, 0.0, 100.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    "value, text",
    [(0.02, "0.02"), (300, "300"), (1e-5, "10⁻⁵"), (2e-5, "2·10⁻⁵"), (1e-3, "0.001"), (3e4, "3·10⁴"), (-0.5, "−0.5")],
)
def test_numbers(value, text):
    assert figures.number(value) == text


def test_durations():
    assert [figures.duration(value) for value in (2e-5, 3e-3, 0.5, 10)] == ["20 µs", "3 ms", "500 ms", "10 s"]


def test_a_name_in_two_lines():
    name = series.Name("diffusers", "DPMSolverMultistep ++2M euler at final", "lu", "its own")
    assert figures.lines(name) == ("DPM ++2M euler", "at final · lu")
    assert figures.lines(series.Name("odediff", "heun", "karras", "extrapolate")) == (
        "heun",
        "karras · closing extrapolate",
    )


def test_a_panel_draws_what_it_was_given():
    study = Study(table())
    curves = study.errors["mixture_2"]
    figure = figures.panel(curves, study.colours, "title", "subtitle", line=figures.Line(0.05, "floor", ""))
    (axes,) = figure.axes
    drawn = [(list(map(float, one.get_xdata())), list(map(float, one.get_ydata()))) for one in axes.lines]
    for curve in curves:
        assert ([p.calls for p in curve.points], [p.value for p in curve.points]) in drawn
    assert ([0, 1], [0.05, 0.05]) in drawn
    assert axes.get_xscale() == axes.get_yscale() == "log"
    said = [text.get_text() for text in figure.texts]
    assert {"title", "subtitle", "heun", "ddim", "DPM ++2M euler", "torchdiffeq", "floor"} <= set(said)


def test_a_line_far_below_does_not_squash_the_curves():
    study = Study(table())
    figure = figures.panel(
        study.errors["mixture_2"], study.colours, "", "", line=figures.Line(3e-11, "reference", "its own error")
    )
    assert figure.axes[0].get_ylim()[0] > 1e-4
    assert "↓ its own error 3·10⁻¹¹" in [text.get_text() for text in figure.texts]


def test_verdicts_count_shared_first_ranks_and_the_factor():
    alone = summary.verdict([place("a", 1, 0.1), place("p", 2, 0.2)], NAMES)
    assert (alone.ours, alone.peers, alone.factor, alone.leaders) == (True, False, 2.0, (NAMES["a"],))
    shared = summary.verdict([place("p", 1, 0.1), place("b", 1, 0.11), place("a", 3, 0.5)], NAMES)
    assert (shared.ours, shared.peers) == (True, True)
    assert shared.factor == pytest.approx(0.1 / 0.11)
    assert summary.verdict([place("a", 1, 0.1)], NAMES).factor is None
    assert summary.verdict([place("a", 1, 0.1), place("p", 2, math.inf)], NAMES).factor is None


def test_the_closest_method_is_measured_by_the_geometric_mean():
    first = [place("a", 1, 1.0), place("b", 2, 2.0), place("p", 3, 4.0)]
    second = [place("p", 1, 1.0), place("b", 2, 2.0), place("a", 3, 16.0)]
    assert summary.closest([first, second], [NAMES, NAMES], True) == ("b", pytest.approx(2.0))
    assert summary.closest([first, second], [NAMES, NAMES], False) == ("DPM ++2M", pytest.approx(2.0))
    assert summary.closest([first], [NAMES], False) == ("DPM ++2M", pytest.approx(4.0))
    missing = [place("p", 1, 1.0)]
    assert summary.closest([first, missing], [NAMES, NAMES], True) == ("", math.inf)


def test_a_sentence_names_the_best_and_the_factors():
    verdicts = [summary.verdict([place("a", 1, 0.1), place("p", 2, 0.2)], NAMES)] * 3
    said = summary.sentence(verdicts, ("a", 1.0), ("DPM ++2M", 2.0))
    assert said == (
        "a of odediff is best: its error is the smallest on every problem; the best of the peers is DPM ++2M, with 2.0 "
        "times the smallest. Of 3 problems, the first rank is odediff's on 3."
    )
    behind = summary.sentence(verdicts, ("a", 1.26), ("DPM ++2M", 2.0))
    assert behind.startswith("a of odediff is best: its error is 1.26 times the smallest in the mean; the best of")
    assert summary.against(4.0) == "ours 4.0 times smaller"
    assert summary.against(0.8) == "ours 1.25 times larger"
    assert summary.against(1.001) == "ours equal"


def test_rank_tables_show_what_is_shared():
    ranked = {5: [place("p", 1, 0.1), place("b", 1, 0.11), place("a", 3, 0.5)], 10: [place("a", 1, 0.1)]}
    found = summary.standings(ranked, NAMES, [5, 10])
    assert [standing.name for standing in found] == [NAMES["p"], NAMES["b"], NAMES["a"]]
    assert [(p.rank, p.shared) for p in (found[0].places[0], found[1].places[0], found[2].places[0])] == [
        (1, True),
        (1, True),
        (3, False),
    ]
    assert found[0].places[1] is None


def test_tiles_leave_a_pixel_that_is_not_drawn():
    whole = sheets.tile(np.stack([np.full(784, i, dtype=np.uint8) for i in (1, 2, 3)]), 2)
    assert whole.shape == (57, 57)
    assert [whole[y, x] for y, x in ((0, 0), (27, 27), (0, 29), (29, 0))] == [1, 1, 2, 3]
    assert np.isnan(whole[28]).all() and np.isnan(whole[:, 28]).all() and np.isnan(whole[29:, 29:]).all()


def test_round_trips_leave_out_what_cannot_be_flipped():
    strips = before_after.round_trips([("ddim", "karras"), ("ddpm", "karras"), ("unknown", "karras")], [2])
    assert [strip.label for strip in strips] == ["real images", "ddim, karras"]
    before, after = (strip.pictures[0] for strip in strips)
    error = np.sqrt(np.nanmean((before - after) ** 2)) / 127.5
    assert float(strips[1].note.removeprefix("rms error ")) == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize("colour", [theme.INK, theme.SOFT, theme.PEER, *theme.COLOURS])
def test_text_has_contrast_in_light_and_dark(colour):
    assert theme.contrast(colour, theme.PAPER) >= 4.5
    assert theme.contrast(theme.DARK[colour], theme.DARK[theme.PAPER]) >= 4.5


def test_contrast_is_that_of_the_standard():
    assert theme.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert theme.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_the_page_is_whole(written):
    page = (written / report.PAGE).read_text(encoding="utf-8")
    assert len(page.encode()) < 5e6
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)="(?!#|data:)|url\((?!#)|@import""", page)
    anchors = re.findall(r'\bid="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(anchors)
    assert "<title>Calls against quality: 4 solvers of odediff and 2 peers on 2 problems" in page
    assert "python -m benchmarks.nfe_quality nfe=[5,10]" in page and "torch 2.13.0" in page
    assert "too few &lt;here&gt;" in page
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<svg.*?</svg>|<style.*?</style>", "", page)))
    assert "DPM ++2M euler at final of the peers is best: its error is the smallest" in text
    assert "ours 1.50 times larger" in text and "heun karras 0.02 ours 5.0 times smaller" in text


def test_every_figure_is_written_twice(written):
    page = (written / report.PAGE).read_text(encoding="utf-8")
    names = re.findall(r'<figure id="([^"]+)"', page)
    files = {file.name for file in (written / report.FIGURES).iterdir()}
    assert files == {f"{name}{ending}" for name in names for ending in (".svg", ".png")}
    assert {
        f"{kind}_{p}"
        for kind in ("error", "work_calls", "work_seconds", "round_trip")
        for p in ("mixture_2", "network_1")
    } | {
        "sliced_wasserstein_mixture_2",
        "kernel_distance_network_1",
        "accuracy_network_1",
        "frechet_network_1",
        "seeds_network_1",
        "inversion_images",
    } == set(names)
    for name in names:
        svg = ElementTree.parse(written / report.FIGURES / f"{name}.svg").getroot()
        assert svg[0].tag.endswith("title") and svg[0].text
        with Image.open(written / report.FIGURES / f"{name}.png") as picture:
            shape = picture.width / picture.height
        assert shape == pytest.approx(float(svg.get("width")) / float(svg.get("height")), rel=0.01)


def test_a_page_that_would_be_too_large_links_to_figures(written, tmp_path, monkeypatch):
    whole = (written / report.PAGE).read_text(encoding="utf-8")
    monkeypatch.setattr(report, "LARGEST", 3 * len(whole.encode()) // 4)
    report.write(table(), tmp_path)
    page = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert len(page.encode()) <= report.LARGEST
    linked = re.findall(r'href="(figures/[^"]+)"', page)
    assert linked
    assert all((tmp_path / file).is_file() for file in linked)
    assert whole.count("<figure") == page.count("<figure") + len(linked)
    assert re.findall("<h2>.*</h2>", whole) == re.findall("<h2>.*</h2>", page)
    monkeypatch.setattr(report, "LARGEST", 1)
    report.write(table(), tmp_path)
    assert "<figure" not in (tmp_path / report.PAGE).read_text(encoding="utf-8")


def test_the_same_table_gives_the_same_page(tmp_path):
    rows = [r for r in table() if r["problem"] == "mixture_2" and r.get("seed") == 0 and r["nfe"] == 5]
    pages = []
    for name in ("one", "two"):
        report.write(rows, tmp_path / name)
        pages.append((tmp_path / name / report.PAGE).read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("rows", [[], [row("mixture_2", "rk4", 5, None) | {"status": "ValueError: too few"}]])
def test_no_results(rows, tmp_path):
    with pytest.raises(ValueError, match="measure some first: python -m benchmarks.nfe_quality"):
        report.write(rows, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="choose another with folder="):
        report.write(table(), file)


def test_only_methods_that_draw_noise(tmp_path):
    rows = [row("mixture_2", "ddpm", nfe, None, sliced_wasserstein=1 / nfe) for nfe in (5, 10)]
    report.write(rows, tmp_path)
    assert "nothing is ranked" in (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert {file.stem for file in (tmp_path / report.FIGURES).iterdir()} == {"sliced_wasserstein_mixture_2"}


COLOURS_OF_TEXT = """
[...document.querySelectorAll('body *')]
  .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length)
  .map(e => {
    const inside = e.closest('svg');
    let at = e, back = '';
    while (at && /^rgba.*, 0\\)$|^$/.test(back = getComputedStyle(at).backgroundColor)) at = at.parentElement;
    return [inside ? getComputedStyle(e).fill : getComputedStyle(e).color, back];
  })
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('svg text')].map(
  e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a
))
"""
PICTURES = """
Promise.all([...document.querySelectorAll('svg image')].map(async e => {
  const picture = new Image();
  picture.src = e.href.baseVal;
  await picture.decode();
  return picture.naturalWidth * e.getBoundingClientRect().width > 0;
})).then(found => found.length > 0 && found.every(Boolean))
"""


@pytest.mark.skipif(chromium.found() is None, reason="chromium is not installed")
def test_a_browser_shows_it(written, tmp_path):
    page_file = written / report.PAGE
    with chromium.page(tmp_path / "profile") as page:
        for scheme in ("light", "dark"):
            page.open(page_file, width=390, scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            assert page.evaluate(SMALLEST_TEXT) >= 7.5
            assert page.evaluate(PICTURES) is True
            for colours in {tuple(pair) for pair in page.evaluate(COLOURS_OF_TEXT)}:
                assert theme.contrast(*map(as_hex, colours)) >= 4.5, (scheme, colours)
        background = as_hex(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert background == theme.DARK[theme.PAPER]
        problems = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed"}
        assert [event for event in page.events if event["method"] in problems] == []
        asked = {e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"}
        assert {url for url in asked if not url.startswith("data:")} == {page_file.resolve().as_uri()}
        width, height = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", page.pdf()).groups()
        assert (float(width), float(height)) == pytest.approx((595.3, 841.9), abs=1)


def as_hex(colour):
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])
