import inspect
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

import odediff
import solvers
from odediff import app
from odediff.config import conf_folder, register
from odediff.problems import exact_model
from solvers.testing import Gaussian

CONF = conf_folder()


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def composed(*overrides: str):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def tiny_solve(path=None, solver=None, grid=None) -> torch.Tensor:
    path = path or odediff.VPTable.linear()
    model = exact_model(Gaussian(), path, "flow")
    return odediff.sample(model, (3, 2), solver=solver or solvers.DDIM(), grid=grid, steps=4, dtype=torch.float64)


@pytest.mark.parametrize("name", names("solver"))
def test_every_solver_config_runs(name):
    solver = instantiate(composed(f"solver={name}").solver)
    assert isinstance(solver, solvers.Solver)
    assert torch.isfinite(tiny_solve(solver=solver)).all()


@pytest.mark.parametrize("name", names("line"))
def test_every_line_config_runs(name):
    solver = instantiate(composed("solver=heun", f"line@solver.line={name}").solver)
    assert type(solver.line).__name__.lower() == name
    assert torch.isfinite(tiny_solve(solver=solver)).all()


@pytest.mark.parametrize("name", names("grid"))
def test_every_grid_config_runs(name):
    grid = instantiate(composed(f"grid={name}").grid)
    assert grid.func.__name__ == name
    # The one schedule that every grid accepts: the published tables of align_your_steps were made for it.
    assert torch.isfinite(tiny_solve(odediff.VPTable.scaled_linear(), grid=grid)).all()


@pytest.mark.parametrize("name", names("schedule"))
def test_every_schedule_config_runs(name):
    path = instantiate(composed(f"schedule={name}").schedule)
    assert isinstance(path, odediff.Schedule)
    assert torch.isfinite(tiny_solve(path=path)).all()


@pytest.mark.parametrize("name", names("task"))
def test_every_task_config_fits_its_function(name):
    task = dict(composed(f"task={name}").task)
    function = get_method(task.pop("_target_"))
    inspect.signature(function).bind("config", **task)


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_runs_and_leaves_one_table_one_picture_and_one_record(name, monkeypatch, tmp_path, capsys):
    config = composed(f"+experiment={name}")
    swept = sweep(name)
    size = "nfe=5" if "nfe" in swept else "steps=3"
    small = ["samples=4", "progress=false", "model.chunk=4", "hydra.run.dir=out", "hydra.sweep.dir=out", size]
    if "reference_steps" in config.task and config.task.reference_steps:
        small.append("task.reference_steps=2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["odediff", f"+experiment={name}", *small])
    app.main()
    out = tmp_path / "out"
    record = json.loads((out / "run.json").read_text())
    jobs = math.prod(len(str(values).split(",")) for key, values in swept.items() if key != size.partition("=")[0])
    assert len(record["jobs"] if swept else [record]) == jobs
    (picture,) = out.glob("*.png")
    assert picture.stat().st_size > 5000
    table, last = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "picture" in last and table.count("\n") >= jobs + 1


def sweep(name: str) -> dict:
    """What an experiment sweeps over, as its file says."""
    written = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
    return OmegaConf.to_container(OmegaConf.select(written, "hydra.sweeper.params")) if "hydra" in written else {}


@pytest.mark.parametrize("name", names("model"))
def test_every_model_config_names_its_target_and_shape(name):
    model = composed(f"model={name}").model
    assert callable(get_method(model._target_))
    assert {"shape", "condition", "guidance", "chunk"} <= set(model)


def test_every_exported_solver_has_a_config():
    register()
    # One composition for all; each one alone, in the whole configuration, is composed above.
    with initialize_config_dir(str(CONF), version_base="1.3"):
        every = compose(overrides=[f"+solver@{name}={name}" for name in names("solver")])
    assert sorted(every) == names("solver")
    configured = {config._target_.rpartition(".")[2] for config in every.values()}
    exported = {
        name
        for name in solvers.__all__
        if inspect.isclass(getattr(solvers, name))
        and issubclass(getattr(solvers, name), solvers.Solver)
        and not inspect.isabstract(getattr(solvers, name))
        and getattr(solvers, name) is not solvers.RungeKutta
    }
    assert configured == exported


def test_every_grid_function_of_one_path_and_a_number_of_steps_has_a_config():
    public = {
        name
        for name, function in vars(odediff.grid).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and "steps" in inspect.signature(function).parameters
    }
    assert set(names("grid")) == public


def test_a_folder_of_the_users_own_adds_configs(tmp_path: Path):
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver" / "mine.yaml").write_text("_target_: solvers.DDIM\neta: 0.25\n")
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"hydra.searchpath=[file://{tmp_path}]", "solver=mine"])
    assert instantiate(config.solver) == solvers.DDIM(0.25)


@pytest.mark.parametrize("group", ["grid", "line", "schedule"])
def test_every_grid_line_and_schedule_says_what_it_is(group):
    for name in names(group):
        first = (CONF / group / f"{name}.yaml").read_text().partition("\n")[0]
        assert first.startswith("# ") and first.endswith("."), name
