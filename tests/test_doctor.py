"""The doctor names the mistake that was made, and none where none is: on exact networks and on the embedded one."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

import odediff
from odediff import zoo
from odediff.doctor import Finding, Report, diagnose
from odediff.doctor.evidence import Answer, Reading
from odediff.doctor.verdict import check_noise_variance
from odediff.prediction import FORMS
from odediff.problems import ExactNetwork, exact_model
from solvers.testing import Gaussian

DATA = Gaussian(mean=0.3, deviation=0.5)
# Little of this data's deviation is left between the pixels, as in images: near the data, noise can be seen.
SMOOTH = Gaussian(mean=0.3, deviation=0.05)


def drawn(distribution, size=8):
    noise = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (distribution.mean + distribution.deviation * noise).float()


@pytest.fixture(scope="module")
def data():
    return drawn(DATA)


@pytest.fixture(scope="module")
def smooth():
    return drawn(SMOOTH, size=24)


@pytest.fixture(scope="module")
def images():
    return zoo.test_images()[0][:60]


@pytest.fixture(scope="module")
def embedded():
    return zoo.fashion_mnist().condition(label=zoo.test_images()[1][:60])


def mistakes(report):
    return {finding.check for finding in report.findings if finding.status in ("wrong", "suspicious")}


def test_the_embedded_network_is_what_it_is_declared_to_be(embedded, images):
    report = diagnose(embedded, images, samples=6)
    assert report.ok, report
    checks = ("output", "image range", "noise variance", "prediction form", "schedule and time", "condition")
    assert [report[check].status for check in checks] == ["ok"] * 6
    assert report["time offset"].status in ("ok", "cannot tell")


@pytest.mark.parametrize(
    ("mistake", "check", "name"),
    [
        (
            lambda model, images: (replace(model, path=odediff.VPTable.cosine()), images),
            "schedule and time",
            "trained on VPTable.linear(1000)",
        ),
        (lambda model, images: (replace(model, network_time=lambda t: t), images), "schedule and time", "told n - 1"),
        (lambda model, images: (model, (images + 1) / 2), "image range", "images in [0, 1]"),
    ],
    ids=["cosine table", "t from 0 to 1", "images in [0, 1]"],
)
def test_one_wrong_declaration_of_the_embedded_network_is_named(embedded, images, mistake, check, name):
    report = diagnose(*mistake(embedded, images), samples=5)
    assert report[check].status == "wrong" and report[check].measured.startswith(name), report
    assert report[check].remedy
    assert mistakes(report) <= {check, "noise variance"}, report


@pytest.mark.parametrize("path", [odediff.VPTable.linear(), odediff.RectifiedFlow(), odediff.VE()], ids=repr)
@pytest.mark.parametrize("form", FORMS)
def test_an_exact_network_declared_right_has_no_mistake(path, form, data):
    report = diagnose(exact_model(DATA, path, form), data)
    assert report.ok, report


@pytest.mark.parametrize("path", [odediff.VPTable.linear(), odediff.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize(("true", "declared"), list(permutations(FORMS, 2)))
def test_each_form_declared_as_each_other_is_named(path, true, declared, data):
    report = diagnose(replace(exact_model(DATA, path, true), prediction=declared), data)
    finding = report["prediction form"]
    assert finding.status == "wrong" and finding.measured.startswith(f"{true}, not {declared}:"), report
    assert finding.remedy == f'declare prediction="{true}"'
    assert report["schedule and time"].status == "ok", report


def test_a_flow_network_of_the_opposite_sign_is_named(data):
    exact = exact_model(DATA, odediff.RectifiedFlow(), "flow")
    finding = diagnose(replace(exact, network=lambda x, t: -exact.network(x, t)), data)["prediction form"]
    assert finding.measured.startswith("-flow, not flow") and "negate" in finding.remedy


def entry_network(path, counts_from=0):
    """An exact network that is told an entry of the table."""
    exact = ExactNetwork(SMOOTH, path)
    return lambda x, time: exact(x, (time.double() + 1 - counts_from) / path.T)


@pytest.mark.parametrize("integer_time", [False, True])
@pytest.mark.parametrize("length", [100, 1000])
def test_an_index_off_by_one_is_found_and_a_right_one_is_not(length, integer_time, smooth):
    path = odediff.VPTable.linear(length, 0.1 / length, 20 / length)
    for counts_from, status, remedy in (
        (0, "ok", ""),
        (1, "wrong", "one more, as if it counted from 1"),
        (-1, "wrong", "one less, as if it counted from 0"),
    ):
        model = odediff.Model(entry_network(path, counts_from), path, integer_time=integer_time)
        finding = diagnose(model, smooth)["time offset"]
        assert finding.status == status and remedy in finding.remedy, (counts_from, finding)
    counting_from_1 = odediff.Model(entry_network(path, 1), path, network_time=lambda t: round(t * path.T, 6))
    assert diagnose(counting_from_1, smooth)["time offset"].status == "ok"


def test_a_wrong_form_and_an_index_off_by_one_are_both_found_on_the_embedded_network(embedded, images):
    network = embedded.network
    late = replace(embedded, prediction="v", network=lambda x, time, label: network(x, time - 1, label))
    report = diagnose(late, images, samples=5)
    assert report["prediction form"].measured.startswith("epsilon, not v"), report
    assert report["time offset"].status == "wrong" and "from 1" in report["time offset"].remedy, report


def test_a_network_that_ignores_the_time_near_the_data_leaves_the_offset_open(smooth):
    path = odediff.VPTable.linear()
    exact = entry_network(path)
    report = diagnose(odediff.Model(lambda x, time: exact(x, time.clamp(min=40)), path), smooth)
    assert report["time offset"].status == "cannot tell"


def own_time(path, told):
    """The time of the path at which its network is told this, by the path's own convention."""
    if isinstance(path, odediff.VPTable):
        return (told + 1) / path.T
    return told / path.time_scale if isinstance(path, odediff.RectifiedFlow) else told


@pytest.mark.parametrize(
    ("true", "declared", "name"),
    [
        (odediff.RectifiedFlow(time_scale=1000.0), odediff.RectifiedFlow(), "told 1000 t"),
        (odediff.RectifiedFlow(), odediff.VPLinear(), "trained on RectifiedFlow()"),
        (odediff.VPLinear(), odediff.SubVP(), "trained on VPLinear()"),
        (odediff.VE(), odediff.VPLinear(), "trained on VE()"),
        (odediff.VPTable.cosine(200), odediff.VPTable.linear(200, 5e-4, 0.1), "trained on VPTable.cosine(200)"),
    ],
    ids=repr,
)
def test_another_schedule_is_named(true, declared, name, data):
    exact = ExactNetwork(DATA, true)
    report = diagnose(odediff.Model(lambda x, told: exact(x, own_time(true, told.double())), declared), data)
    assert "schedule and time" in mistakes(report), report
    assert report["schedule and time"].measured.startswith(name), report


@pytest.mark.parametrize("shift", [0.4, 3.0])
@pytest.mark.parametrize(
    ("clock", "name"), [(lambda t: 1 - t, "told 1 - tau"), (lambda t: t / 1000, "told 1000 tau")], ids=["back", "many"]
)
def test_a_clock_of_the_noise_level_is_named_on_a_shifted_flow(shift, clock, name, data):
    path = odediff.RectifiedFlow(shift)
    exact = ExactNetwork(DATA, odediff.RectifiedFlow(), "flow")
    report = diagnose(odediff.Model(lambda x, told: exact(x, clock(told.double())), path, "flow"), data)
    assert mistakes(report) >= {"schedule and time"} and report["schedule and time"].measured.startswith(name), report


@pytest.mark.parametrize("length", [2, 8, 12])
def test_a_short_table_is_tested_inside_its_entries(length, data):
    path = odediff.VPTable.cosine(length)
    exact = ExactNetwork(DATA, path)
    assert diagnose(odediff.Model(lambda x, told: exact(x, (told + 1) / length), path), data).ok


def test_the_time_of_a_shifted_flow_cannot_be_said_by_custom(data):
    path = odediff.RectifiedFlow(3.0)
    exact = ExactNetwork(DATA, path)
    finding = diagnose(odediff.Model(lambda x, told: exact(x, told.double()), path), data)["schedule and time"]
    assert finding.measured.startswith("told t, from 0 to 1") and "custom" not in finding.remedy, finding


def test_a_reversed_clock_is_named(data):
    path = odediff.VPLinear()
    exact = ExactNetwork(DATA, path)
    report = diagnose(odediff.Model(lambda x, time: exact(x, 1 - time.double()), path), data)
    assert report["schedule and time"].measured.startswith("told 1 - t")


def test_bytes_are_named_and_scaled_for_the_other_checks(data):
    levels = ((data.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    report = diagnose(exact_model(DATA, odediff.VPLinear()), levels)
    assert report["image range"].status == "wrong" and "127.5" in report["image range"].remedy
    assert mistakes(report) == {"image range"}


def noisy(x, time):
    return x + 0.1 * torch.randn_like(x)


def coupled(x, time):
    return x - x.mean(0, keepdim=True)


def refusing(x, time):
    raise KeyError("no such embedding")


@pytest.mark.parametrize(
    ("network", "check", "measured"),
    [
        (lambda x, time: x * torch.nan, "output", "not finite in 16 of 16 samples"),
        (lambda x, time: x / 0, "output", "not finite"),
        (lambda x, time: x[:, :1], "output", "(16, 1, 8, 8)"),
        (lambda x, time: (x,), "output", "tuple"),
        (refusing, "output", "no such embedding"),
        (lambda x: x, "output", "TypeError"),
        (noisy, "repeatable", "relative change"),
        (coupled, "rows alone", "relative change"),
    ],
    ids=["nan", "infinite", "shape", "tuple", "raises", "signature", "dropout", "batch norm"],
)
def test_a_broken_contract_is_named_and_ends_the_examination(network, check, measured, data):
    report = diagnose(odediff.Model(network, odediff.VPLinear()), data)
    assert report[check].status == "wrong" and measured in report[check].measured
    assert report["the rest"].status == "cannot tell"
    assert not report.ok and report[check].remedy in " ".join(str(report).split())


@pytest.mark.parametrize("network", [lambda x, time: 0 * x, lambda x, time: x.flip(-1)], ids=["zero", "nonsense"])
@pytest.mark.parametrize("path", [odediff.VPLinear(), odediff.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("size", [0.5, 1.0])
def test_an_untrained_network_has_no_skill_and_is_told_nothing_else(network, path, size, data):
    report = diagnose(odediff.Model(network, path), data * size / data.square().mean().sqrt())
    assert mistakes(report) == {"skill"} and "is the network trained" in report["skill"].remedy, report
    assert str(report).count("-> ") == 2 and "declare" not in str(report), report
    checks = [finding.check for finding in report.findings]
    assert checks == ["output", "repeatable", "rows alone", "skill", "image range", "the rest"]


def test_bytes_are_named_beside_an_untrained_network(data):
    report = diagnose(odediff.Model(lambda x, time: 0 * x, odediff.VPLinear()), data.abs() * 255 / data.abs().max())
    assert mistakes(report) == {"skill", "image range"}, report


def labelled(label, null=0, network=lambda x, t, label: ExactNetwork(DATA, odediff.VPLinear())(x, t)):
    return odediff.Model(network, odediff.VPLinear(), conditions={"label": label}, null={"label": null})


def test_a_network_that_ignores_its_label_is_named(data):
    report = diagnose(labelled(3), data)
    assert mistakes(report) == {"condition"} and "ignores" in report["condition"].remedy


def test_without_a_condition_its_effect_is_open(data):
    assert diagnose(labelled(0), data)["condition"].status == "cannot tell"


@pytest.mark.parametrize(
    ("condition", "null"),
    [
        (torch.ones(16, 5, 2), torch.zeros(1, 7, 2)),
        ({"text": torch.ones(16, 2)}, {"text": torch.zeros(1, 2)}),
        (torch.ones(16, 2), None),
    ],
)
def test_conditions_of_any_kind_are_compared_with_the_null(condition, null, data):
    assert diagnose(labelled(condition, null), data)["condition"].status == "wrong"


def test_a_null_that_the_network_refuses_is_named(data):
    table = torch.zeros(4)
    model = labelled(3, null=9, network=lambda x, t, label: labelled(3).network(x, t, label) + table[label][0])
    finding = diagnose(model, data)["condition"]
    assert finding.status == "wrong" and "null was refused" in finding.measured


def test_a_remapped_model_is_tested_on_the_schedule_of_its_training(data):
    assert diagnose(exact_model(DATA, odediff.VPLinear()).remap(odediff.VE()), data).ok


@pytest.mark.parametrize("path", [odediff.VPTable.linear(), odediff.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize(
    ("true", "declared", "status"),
    [
        ("epsilon", "epsilon", "cannot tell"),
        ("epsilon", "x0", "wrong"),
        ("x0", "epsilon", "wrong"),
        ("score", "epsilon", "wrong"),
        ("epsilon", "score", "wrong"),
    ],
)
def test_without_images_pure_noise_tells_some_forms_apart(path, true, declared, status):
    model = replace(exact_model(DATA, path, true), prediction=declared)
    report = diagnose(model, shape=(3, 8, 8))
    assert report["prediction form"].status == status, report
    assert report["image range, schedule and time"].status == "cannot tell"


@pytest.mark.parametrize(("shape", "error"), [(4, TypeError), ((3, 0), ValueError), ((), ValueError)])
def test_a_shape_that_is_not_one_is_refused_by_its_name(shape, error):
    with pytest.raises(error, match=r"^shape=.* must be that of one sample.* such as \(1, 28, 28\)"):
        diagnose(exact_model(DATA, odediff.VPLinear()), shape=shape)


def test_the_report_is_a_table_with_one_remedy_below_each_mistake(data):
    report = diagnose(replace(exact_model(DATA, odediff.VPLinear()), prediction="v"), data)
    lines = str(report).splitlines()
    assert lines[0].split() == ["check", "status", "measured"]
    assert max(map(len, lines)) <= 120
    assert str(report).count("-> ") == sum(bool(finding.remedy) for finding in report.findings)


def test_a_report_is_ok_where_nothing_is_wrong_or_suspicious():
    statuses = ("ok", "cannot tell", "suspicious", "wrong")
    assert [Report((Finding("output", status, ""),)).ok for status in statuses] == [True, True, False, False]


def test_a_noise_variance_that_chance_explains_is_no_mistake():
    node, noise = odediff.VPTable.linear().node(0.3), torch.ones(4, 1)
    answer = Answer(node, torch.zeros(4, 1), torch.tensor([[1.5], [0.5], [1.5], [0.5]]), noise)
    assert check_noise_variance([answer], Reading("epsilon")).status == "ok"


def test_the_same_seed_gives_the_same_report(data):
    model = exact_model(DATA, odediff.VPLinear())
    assert (
        str(diagnose(model, data, seed=1)) == str(diagnose(model, data, seed=1)) != str(diagnose(model, data, seed=2))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "images, shape"),
        ({"images": torch.zeros(3, 2)}, "at least 4"),
        ({"images": torch.full((8, 2), torch.nan)}, "not finite"),
        ({"images": torch.zeros(8, 2), "samples": 2}, "samples=2"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagnose(exact_model(DATA, odediff.VPLinear()), **arguments)


def test_conditions_without_a_row_for_each_image_are_refused(data):
    with pytest.raises(ValueError, match="'label' has 3 rows but the batch 16"):
        diagnose(labelled(torch.arange(3)), data)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_images_of_torchs_generator_at_the_same_seed_are_no_noise(seed):
    table = odediff.VPTable.linear()
    exact = ExactNetwork(Gaussian(0.2, 0.5), table)
    model = odediff.Model(lambda x, time: exact(x, (time + 1) / 1000), table)
    images = 0.2 + 0.5 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    report = diagnose(model, images)
    assert report.ok, str(report)


def test_a_network_that_breaks_at_other_times_is_examined_all_the_same(data):
    table = odediff.VPTable.linear()
    exact = ExactNetwork(Gaussian(), table)

    def careful(x, time):
        assert (time >= 0).all() and (time < 1000).all()
        return exact(x, (time + 1) / 1000)

    diagnose(odediff.Model(careful, table), data)


class Embedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(1000, 3)

    def forward(self, x, time):
        return x + self.table(time)[:, :, None, None]


@pytest.mark.parametrize(
    "network", [Embedding(), lambda x, time: x * torch.ones(1000)[time, None, None, None]], ids=["embedding", "index"]
)
def test_a_table_of_times_is_told_to_be_declared(network, data):
    model = odediff.Model(network, odediff.VPTable.linear())
    assert "declare integer_time=True" in diagnose(model, data)["output"].remedy
    assert diagnose(replace(model, integer_time=True), data)["output"].status == "ok"


def test_the_examination_is_where_the_modules_are_that_a_function_holds():
    network, told = torch.nn.Conv2d(3, 3, 1, device="meta"), []

    def called(x, time):
        told.append(x.device.type)
        raise RuntimeError(f"{network} is asked no further")

    diagnose(odediff.Model(called, odediff.VPLinear()), shape=(3, 4, 4))
    assert set(told) == {"meta"}


def test_a_network_that_refuses_one_row_is_named(data):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(data[0].numel()))
    model = odediff.Model(lambda x, time: net(x).reshape(x.shape), odediff.VPTable.linear())
    report = diagnose(model, data)
    assert not report.ok and "one row was refused" in str(report)
