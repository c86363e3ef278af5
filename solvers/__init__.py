"""Solvers: a numerical library for ODEs along a path from data to noise. It knows nothing of networks."""

from solvers import testing
from solvers.adams import AdaptiveAdams
from solvers.adaptive import Adaptive
from solvers.ancestral import Ancestral
from solvers.backends import Scipy, Torchdiffeq
from solvers.controller import PI, PID, Controller, I
from solvers.coupled import EDICT, AsynchronousLeapfrog, Reversible, ReversibleHeun
from solvers.dop853 import DOP853
from solvers.dpm_pairs import DPM12, DPM23
from solvers.dpm_solver import DPMFast, DPMSolver2, DPMSolver3
from solvers.dpm_solver_singlestep import DPMSolverSinglestep
from solvers.exponential import DDIM, DDPM
from solvers.exponential_runge_kutta import ETDRK2, ETDRK3, ETDRK4, RES2S, RES3S, HochbruckOstermann4
from solvers.gp_multistep import GPMultistep
from solvers.implicit import GaussLegendre
from solvers.implicit_inverse import Effort, FixedPoint, NewtonKrylov
from solvers.inverse import Inverse
from solvers.lines import Data, Line, Noise, Rotation
from solvers.multistep import ExponentialAdams
from solvers.named_multistep import DEIS, IPNDM, LMS, DPMpp, DPMSolver, UniPC
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE, Prediction
from solvers.pndm import PNDM
from solvers.prior import Prior
from solvers.reversible import Companion, ReversibleSolver
from solvers.runge_kutta import (
    RK4,
    SSPRK3,
    Bosh3,
    Dopri5,
    Embedded,
    Euler,
    Extension,
    Heun,
    Midpoint,
    Ralston,
    RungeKutta,
    Tableau,
    Tsit5,
)
from solvers.sa_solver import SASolver
from solvers.solution import Solution, SolveError, Stats, Status
from solvers.solve import solve
from solvers.solver import Solver, Step
from solvers.stochastic import DPMSolverSDE, EDMHeun, EulerMaruyama
from solvers.sums import combine
from solvers.trajectory import TrajectoryInverse
from solvers.two_step import BDIA, OBELM, Leapfrog

__all__ = [
    "BDIA",
    "DDIM",
    "DDPM",
    "DEIS",
    "DOP853",
    "DPM12",
    "DPM23",
    "EDICT",
    "ETDRK2",
    "ETDRK3",
    "ETDRK4",
    "I",
    "IPNDM",
    "LMS",
    "OBELM",
    "ODE",
    "PI",
    "PID",
    "PNDM",
    "RES2S",
    "RES3S",
    "RK4",
    "SSPRK3",
    "Adaptive",
    "AdaptiveAdams",
    "Ancestral",
    "AsynchronousLeapfrog",
    "Bosh3",
    "Companion",
    "Controller",
    "DPMFast",
    "DPMSolver",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverSDE",
    "DPMSolverSinglestep",
    "DPMpp",
    "Data",
    "Dopri5",
    "EDMHeun",
    "Effort",
    "Embedded",
    "Euler",
    "EulerMaruyama",
    "ExponentialAdams",
    "Extension",
    "FixedPoint",
    "GPMultistep",
    "GaussLegendre",
    "Heun",
    "HochbruckOstermann4",
    "Inverse",
    "Leapfrog",
    "Line",
    "Midpoint",
    "NewtonKrylov",
    "Node",
    "Noise",
    "NoiseStream",
    "PathODE",
    "Prediction",
    "Prior",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "ReversibleSolver",
    "Rotation",
    "RungeKutta",
    "SASolver",
    "Scipy",
    "Solution",
    "SolveError",
    "Solver",
    "Stats",
    "Status",
    "Step",
    "Tableau",
    "Torchdiffeq",
    "TrajectoryInverse",
    "Tsit5",
    "UniPC",
    "combine",
    "solve",
    "testing",
]
