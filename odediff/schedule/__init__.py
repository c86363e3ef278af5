"""Noise schedules: the path x_t = alpha(t) x0 + sigma(t) eps, continuous in t, in float64, with the data at t = 0."""

from odediff.schedule.base import Schedule
from odediff.schedule.other import VE, RectifiedFlow, SubVP
from odediff.schedule.section import Section
from odediff.schedule.table import VPTable
from odediff.schedule.vp import VP, VPCosine, VPLinear, VPScaledLinear, VPSigmoid

__all__ = [
    "VE",
    "VP",
    "RectifiedFlow",
    "Schedule",
    "Section",
    "SubVP",
    "VPCosine",
    "VPLinear",
    "VPScaledLinear",
    "VPSigmoid",
    "VPTable",
]
