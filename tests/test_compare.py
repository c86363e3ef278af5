import json
import sys

import pytest

from odediff import app
from odediff.config import configured_solvers

QUICK = ["task=compare", "task.samples=16", "task.problems=[gaussian,mixture_2]", "progress=false", "hydra.run.dir=out"]
MINE = """
from dataclasses import dataclass
from typing import ClassVar
import solvers

@dataclass(frozen=True)
class MySolver(solvers.Solver):
    order: ClassVar[int] = 1

    def step(self, ode, a, b, x, state=None):
        prediction = ode.predict(a, x)
        return solvers.Step(solvers.combine((b.alpha, prediction.x0), (b.sigma, prediction.eps)))
"""


def run(monkeypatch, tmp_path, *arguments: str) -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["odediff", *arguments])
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_solver_of_the_users_own_is_ranked_among_all_others(monkeypatch, tmp_path, capsys):
    (tmp_path / "mine_to_compare.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = ["solver=ddim", "~solver.eta", "solver._target_=mine_to_compare.MySolver"]
    assert run(monkeypatch, tmp_path, *QUICK, *mine, "task.nfe=[8,16]") == 0
    table = {row["solver"].strip("* "): row for row in json.loads((tmp_path / "out" / "run.json").read_text())["table"]}
    deterministic: dict = {}
    for name, solver in configured_solvers().items():
        if solver.deterministic and solver not in deterministic.values():
            deterministic[name] = solver
    # A method that chooses its own steps may need more calls than there are, whatever its tolerance.
    on_grids = {name for name, solver in deterministic.items() if solver.law != "tolerance"}
    assert on_grids | {"MySolver"} <= set(table) <= set(deterministic) | {"MySolver"}
    assert "adams" in table
    # It is DDIM: the same errors, and no rank of its own.
    for column, value in table["ddim"].items():
        assert column == "solver" or table["MySolver"][column] == pytest.approx(value, rel=1e-9), column
    assert table["ddim"]["error at 16"] < table["ddim"]["error at 8"]
    assert (tmp_path / "out" / "compare.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "* MySolver" in out


def test_a_configured_solver_takes_part_once(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, *QUICK, "solver=heun", "task.nfe=[9]") == 0
    names = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert names.count("* heun") == 1 and "heun" not in names


def test_equal_solvers_compete_once_under_the_first_of_their_names(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, *QUICK, "solver=kdpm2", "task.nfe=[9]") == 0
    names = {row["solver"] for row in json.loads((tmp_path / "out" / "run.json").read_text())["table"]}
    assert {"dpm_solver_2", "ipndm_v"} <= names and not {"kdpm2", "lms"} & names
    assert "* dpm_solver_2" in (out := capsys.readouterr().out) and "equal solvers share" in out


@pytest.mark.parametrize("closing", ["extrapolate", "null", "denoise"])
def test_a_closing_is_taken_by_all_who_can(monkeypatch, tmp_path, closing):
    words = [word for word in QUICK if "problems" not in word]
    words += ["task.problems=[gaussian]", "task.nfe=[12]", "solver=adams", f"closing={closing}"]
    assert run(monkeypatch, tmp_path, *words) == 0
    names = {row["solver"] for row in json.loads((tmp_path / "out" / "run.json").read_text())["table"]}
    assert {"adams", "heun"} <= names and ("inverse" in names) == (closing != "extrapolate")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["solver=ddpm"], ["DDPM", "stochastic", "nfe_quality"]),
        (["task.problems=[nope]"], ["problem=nope", "mixture_2"]),
        (["task.nfe=[1]", "solver=rk4", "closing=extrapolate"], ["task.nfe=[1]", "RK4"]),
        (["task.samples=1"], ["task.samples=1"]),
        (["task.nfe=[]"], ["task.nfe=[]"]),
    ],
)
def test_a_wrong_value_gets_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys, arguments, expected):
    given = {a.split("=")[0] for a in arguments}
    assert run(monkeypatch, tmp_path, *(a for a in QUICK if a.split("=")[0] not in given), *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("odediff: ") and "\n" not in error
    for part in expected:
        assert part in error
