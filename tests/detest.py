"""The 25 nonstiff problems of DETEST (Hull, Enright, Fellen & Sedgwick 1972), t from 0 to 20."""

import math

import numpy as np


def chain(diagonal, below):
    """Decay along a chain: y_i' = below_{i-1} y_{i-1} - diagonal_i y_i."""
    matrix = np.diag(-np.asarray(diagonal, dtype=float)) + np.diag(np.asarray(below, dtype=float), -1)
    return lambda t, y: matrix @ y


def diffusion(size):
    matrix = -2 * np.eye(size) + np.eye(size, k=1) + np.eye(size, k=-1)
    return lambda t, y: matrix @ y


def unit(size):
    return np.eye(size)[0]


def b4(t, y):
    r = math.hypot(y[0], y[1])
    return np.array([-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r])


def kepler(t, y):
    cubed = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return np.array([y[2], y[3], -y[0] / cubed, -y[1] / cubed])


def orbit(e):
    return [1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))]


MASSES = np.array([0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778])
PLANETS = [
    [3.42947415189, 3.35386959711, 1.35494901715],
    [6.64145542550, 5.97156957878, 2.18231499728],
    [11.2630437207, 14.6952576794, 6.27960525067],
    [-30.1552268759, 1.65699966404, 1.43785752721],
    [-21.1238353380, 28.4465098142, 15.3882659679],
    [-0.557160570446, 0.505696783289, 0.230578543901],
    [-0.415570776342, 0.365682722812, 0.169143213293],
    [-0.325325669158, 0.189706021964, 0.0877265322780],
    [-0.0240476254170, -0.287659532608, -0.117219543175],
    [-0.176860753121, -0.216393453025, -0.0148647893090],
]


def five_bodies(t, y):
    places, speeds = y.reshape(2, 5, 3)
    apart = places[None] - places[:, None]
    cubed = (np.square(apart).sum(-1) + np.eye(5)) ** 1.5
    pull = (MASSES[None, :, None] * apart / cubed[..., None]).sum(1)
    radius = (np.square(places).sum(-1, keepdims=True)) ** 1.5
    others = (MASSES[:, None] * places / radius).sum(0)
    # The pull of the planets on the sun is common to all, minus a planet's own share, which its two-body term holds.
    own = MASSES[:, None] * places / radius
    forces = 2.95912208286 * (-(1.00000597682 + MASSES[:, None]) * places / radius + pull - (others - own))
    return np.concatenate([speeds.ravel(), forces.ravel()])


PROBLEMS = {
    "A1": (lambda t, y: -y, [1.0]),
    "A2": (lambda t, y: -(y**3) / 2, [1.0]),
    "A3": (lambda t, y: y * math.cos(t), [1.0]),
    "A4": (lambda t, y: y / 4 * (1 - y / 20), [1.0]),
    "A5": (lambda t, y: (y - t) / (y + t), [4.0]),
    "B1": (lambda t, y: np.array([2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])]), [1.0, 3.0]),
    "B2": (lambda t, y: np.array([-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]]), [2.0, 0.0, 1.0]),
    "B3": (lambda t, y: np.array([-y[0], y[0] - y[1] ** 2, y[1] ** 2]), [1.0, 0.0, 0.0]),
    "B4": (b4, [3.0, 0.0, 0.0]),
    "B5": (lambda t, y: np.array([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]), [0.0, 1.0, 1.0]),
    "C1": (chain([1.0] * 9 + [0.0], [1.0] * 9), unit(10)),
    "C2": (chain([*range(1, 10), 0.0], range(1, 10)), unit(10)),
    "C3": (diffusion(10), unit(10)),
    "C4": (diffusion(51), unit(51)),
    "C5": (five_bodies, np.ravel(PLANETS)),
    **{f"D{i}": (kepler, orbit(e)) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), start=1)},
    "E1": (
        lambda t, y: np.array([y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0])]),
        [0.6713967071418030, 0.09540051444747446],
    ),
    "E2": (lambda t, y: np.array([y[1], (1 - y[0] ** 2) * y[1] - y[0]]), [2.0, 0.0]),
    "E3": (lambda t, y: np.array([y[1], y[0] ** 3 / 6 - y[0] + 2 * math.sin(2.78535 * t)]), [0.0, 0.0]),
    "E4": (lambda t, y: np.array([y[1], 0.032 - 0.4 * y[1] ** 2]), [30.0, 0.0]),
    "E5": (lambda t, y: np.array([y[1], math.sqrt(1 + y[1] ** 2) / (25 - t)]), [0.0, 0.0]),
}
