"""odediff: a diffusion model as an ODE. Sampling integrates it from noise to data, inversion from data to noise."""

from odediff import shadow  # noqa: F401  # isort: skip
from odediff import custom, doctor, grid, metrics, problems, zoo
from odediff.code import Code
from odediff.inversion import decode, encode, mix_codes, slerp
from odediff.model import Model
from odediff.null_text import negative_prompt, null_text, shared_null
from odediff.problem import ProbabilityFlow, probability_flow
from odediff.recorders import cycle_diffusion, direct_inversion, edit_friendly
from odediff.sampling import sample
from odediff.schedule import (
    VE,
    VP,
    RectifiedFlow,
    Schedule,
    SubVP,
    VPCosine,
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    VPTable,
)
from odediff.threshold import DynamicThreshold, StaticThreshold
from odediff.version import __version__

__all__ = [
    "VE",
    "VP",
    "Code",
    "DynamicThreshold",
    "Model",
    "ProbabilityFlow",
    "RectifiedFlow",
    "Schedule",
    "StaticThreshold",
    "SubVP",
    "VPCosine",
    "VPLinear",
    "VPScaledLinear",
    "VPSigmoid",
    "VPTable",
    "__version__",
    "custom",
    "cycle_diffusion",
    "decode",
    "direct_inversion",
    "doctor",
    "edit_friendly",
    "encode",
    "grid",
    "metrics",
    "mix_codes",
    "negative_prompt",
    "null_text",
    "probability_flow",
    "problems",
    "sample",
    "shared_null",
    "slerp",
    "zoo",
]
