import math

import numpy as np
import pytest

import odediff
import solvers
from solvers.arguments import as_number
from solvers.controller import Controller

WRONG = [
    (lambda value: solvers.DDIM(eta=value), "eta"),
    (lambda value: solvers.EDICT(p=value), "p"),
    (lambda value: solvers.BDIA(gamma=value), "gamma"),
    (lambda value: solvers.Reversible(coupling=value), "coupling"),
    (lambda value: solvers.Rotation(c=value), "c"),
    (lambda value: solvers.GaussLegendre(tolerance=value), "tolerance"),
    (lambda value: solvers.FixedPoint(tolerance=value), "tolerance"),
    (lambda value: solvers.FixedPoint(damping=value), "damping"),
    (lambda value: solvers.TrajectoryInverse(tolerance=value), "tolerance"),
    (lambda value: solvers.SASolver(tau=value), "tau"),
    (lambda value: solvers.SASolver(s_max=value), "s_max"),
    (lambda value: solvers.EDMHeun(churn=value), "churn"),
    (lambda value: solvers.EDMHeun(s_min=value), "s_min"),
    (lambda value: solvers.EDMHeun(noise=value), "noise"),
    (lambda value: solvers.DPMpp(lower_order_below=value), "lower_order_below"),
    (lambda value: solvers.AdaptiveAdams(rtol=value), "rtol"),
    (lambda value: solvers.Scipy("DOP853", rtol=value), "rtol"),
    (lambda value: Controller(integral=value), "integral"),
    (lambda value: Controller(safety=value), "safety"),
    (lambda value: solvers.Prior(noise=value), "noise"),
    (lambda value: solvers.Prior(scale=value), "scale"),
    (lambda value: solvers.RES2S(c2=value), "c2"),
    (lambda value: odediff.StaticThreshold(value), "limit"),
    (lambda value: odediff.DynamicThreshold(quantile=value), "quantile"),
    (lambda value: odediff.custom.load("torch.nn.Identity", schedule=odediff.VE(), time_scale=value), "time_scale"),
]


@pytest.mark.parametrize(("make", "name"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("value", ["0.5", math.nan, [0.5], True], ids=str)
def test_what_is_no_real_number_is_named_by_its_argument(make, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}="):
        make(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.Prior(noise=-0.1), "noise=-0.1 must be finite, at least 0"),
        (lambda: solvers.Prior(spacing=0), "spacing=0 must be positive"),
        (lambda: solvers.Prior(decision=math.inf), "decision=inf must be finite"),
        (lambda: solvers.GaussLegendre(stages=True), "stages=True must be a whole number from 1 to 3"),
        (lambda: solvers.DPMFast(last=(True,)), r"last=\(True,\) must hold orders"),
        (lambda: odediff.VPCosine(start="a"), r"start='a' must be in \(0, 1\]"),
        (lambda: solvers.Torchdiffeq(batched="no"), "batched='no' must be True or False"),
    ],
)
def test_a_setting_that_cannot_be_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.float64(1), np.int64(1)])
def test_numbers_of_numpy_are_numbers(value):
    assert as_number(value) == 1
    assert solvers.DDIM(eta=value) == solvers.DDIM(eta=1.0)
    assert solvers.AdaptiveAdams(rtol=np.float32(0.5)).rtol == 0.5
