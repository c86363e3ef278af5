import csv
import errno
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imsave
from omegaconf import OmegaConf
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from safetensors.torch import load_file

import odediff
import solvers
from odediff import app, sweep
from odediff.catalogue import solver_table
from odediff.config import TASKS, Config
from odediff.images import load_images
from odediff.run import Run, build
from odediff.tasks import demo
from odediff.tasks import sample as sample_task
from odediff.zoo.unet import UNet

IDENTITY = ["model=custom", "model.factory=torch.nn.Identity", "model.shape=[1,28,28]"]
"""A network that takes no time."""
QUICK = ["samples=3", "progress=false", "model.chunk=3"]


def run(monkeypatch, tmp_path: Path, *arguments: str) -> int:
    """The application as a user calls it, in this process; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["odediff", *arguments])
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["solver=foo"], ["solver=foo is unknown (one of: ", "ddim", "heun"]),
        (["solver=heum"], ["solver=heum is unknown; did you mean heun? (one of: adams, "]),
        (["task=samples"], ["task=samples is unknown; did you mean sample? (one of: compare, "]),
        (["-m", "solver=ddim,heum", "steps=2"], ["solver=heum is unknown; did you mean heun?"]),
        (
            ["task=sample", "+eta=1", "solver=ddim"],
            ["eta is not a key of the configuration; did you mean solver.eta? ("],
        ),
        (["task=sample", "+eta=1"], ["did you mean solver.eta of solver=ddim?"]),
        (["+nonsense=5"], ["nonsense is not a key of the configuration (the keys: model, "]),
        (["task=solvers", "++nonsense.of.mine=5"], ["nonsense is not a key of the configuration (the keys: model, "]),
        (["steps", "20"], ["steps: give KEY=VALUE, as in steps=20"]),
        (["steps:20"], ["steps:20: give KEY=VALUE, as in steps=20"]),
        (["hydra.run.dir=\u00fc"], ["hydra.run.dir=\u00fc cannot be read (", "as in 'hydra.run.dir=\"\u00fc\"'"]),
        (["-m", "steps=range(3,5"], ["steps=range(3,5 cannot be read (", "close its brackets"]),
        (["solver=ddim,heun"], ["solver=ddim,heun: add -m to sweep"]),
        (["solver=null"], ["solver=null: a group takes one of its names; leave it out"]),
        (["label=3"], ["did you mean model.condition.label?"]),
        (["+model.shap=3"], ["model.shap: ", "did you mean shape? (its settings: shape, condition, guidance, chunk, "]),
        (["+model.conditions.size=3"], ["model.conditions: ", "no such setting; did you mean condition?"]),
        (["+foo=1", "+bar=2"], ["foo is not a key of the configuration (the keys: model, "]),
        (["task=sample", "+step=7"], ["step is not a key of the configuration; did you mean steps?"]),
        (["solver=ddim", "solver.order=3"], ["solver.order: DDIM has no such setting (its settings: eta)"]),
        (["solver=ddim", "+solver.order=3"], ["solver.order: DDIM has no such setting (its settings: eta)"]),
        (["solver=euler_maruyama", "solver.etta=3"], ["solver.etta: EulerMaruyama has no such setting (it has none)"]),
        (["solver.points=3"], ["solver.points is not a key", "+solver.points=... would add it"]),
        (["task=sample", "+task.scoer=true"], ["task.scoer: ", "no such setting; did you mean score?"]),
        (["task=sample", "+model.size=3"], ["model.size: ", "no such setting"]),
        (["stepz=3"], ["stepz", "did you mean steps", "nfe"]),
        (["solver=ddim", "solver.etaa=1"], ["solver.etaa", "did you mean eta"]),
        (["steps=abc"], ["steps=abc", "Integer"]),
        (["dtype=float16"], ["float16", "float32, float64"]),
        (["solver=["], ["["]),
        (["task=sample", "solver=ddim", "solver.eta=7"], ["eta=7", "[0, 1]"]),
        (["task=sample", "steps=5", "nfe=4"], ["steps=5", "nfe=4", "exclude"]),
        (["task=sample", "samples=0"], ["samples=0", "at least 1"]),
        (["task=sample", "solver=adams", "rtol=-1"], ["rtol=-1", "positive"]),
        (["task=sample", "rtol=0"], ["rtol=0", "positive, finite"]),
        (["task=sample", "rtol=nan"], ["rtol=nan", "positive, finite"]),
        (["task=sample", "solver=gp_multistep", "rtol=1e-2"], ["rtol=0.01", "GPMultistep", "solver=adams"]),
        (["task=sample", "solver=adams", "rtol=1e-3", "steps=4"], ["rtol=0.001", "steps=4", "exclude"]),
        (["task=sample", "solver=heun", "rtol=1e-3"], ["rtol=0.001", "Heun", "solver=adams"]),
        (["+experiment=null_text", "steps=null", "rtol=1e-3"], ["rtol=0.001", "DDIM", "solver=adams"]),
        (["task=inversion_table", "model.shape=[3,8,8]"], ["model.shape=[3, 8, 8]", "(1, 28, 28)", "task=invert"]),
        (["task=sample", "device=nonsense"], ["device=nonsense", "cpu"]),
        (["task=sample", "schedule=vp_cosine"], ["schedule=VPCosine", "remap=snr"]),
        (["task=sample", "solver._target_=mine.Nope"], ["mine.Nope", "No module named 'mine'"]),
        (
            ["task=sample", "solver=heun", "solver._target_=odediff.Model"],
            ["solver.line: Model has no such setting"],
        ),
        (["task=sample", "hydra.run.dir=/proc/nowhere"], ["/proc/nowhere", "hydra.run.dir"]),
        (["task=sample", "grid=karras", "grid.rho=-1"], ["rho", "-1"]),
        (["task=invert", "solver=ddpm"], ["DDPM", "stochastic", "DDIM"]),
        (["task=edit", "task.method=magic"], ["task.method=magic", "bridge", "null_text"]),
        (["task=edit", "model.guidance=1"], ["model.guidance=1.0", "guidance only"]),
        (["task=edit", "task.method=slerp", "solver=bdia", "steps=4", "samples=1"], ["BDIA", "plain solver", "rk4"]),
        (["task=invert", "task.images=nowhere"], ["task.images=nowhere"]),
        (["task=edit", "task.method=null_text", "solver=adams", "rtol=1e-2"], ["rtol=0.01", "null_text", "steps="]),
        (["task=train", "data.root=nowhere"], ["data.root", "nowhere"]),
        (["task=sample", "model=custom"], ["model.factory"]),
        (["task=demo", *IDENTITY, "model.integer_time=true"], ["model.integer_time=true", "RK4", "task=sample"]),
        (["task=doctor", "model.guidance=3"], ["model.guidance=3", "without guidance"]),
        (["task=invert", "task.images=."], ["task.images=. holds no .png, .jpg, .jpeg files", "not searched"]),
        (["+experiment=foo"], ["+experiment=foo is unknown", "ddim_vs_ddpm", "eta_sweep", "skip_steps"]),
        (["+experiment=eta_sweep", "task.scoer=true"], ["task.scoer", "did you mean score"]),
        (["task=sample", "task.score=true", "samples=1"], ["samples=1", "at least 2"]),
        (["task=sample", "task.score=true", "model.shape=[3,32,32]"], ["task.score", "(3, 32, 32)", "(1, 28, 28)"]),
        (["task=joint", "samples=1"], ["samples=1", "at least 2"]),
        (["task=joint", "samples=9", "task.etas=[0,2]"], ["eta=2", "[0, 1]"]),
        (["task=joint", "samples=9", "task.etas=[]"], ["task.etas=[]", "one or more"]),
        (["task=sample", "solver=heun", "solver.line=noise"], ["solver.line=noise", "line@solver.line=noise"]),
        (["line=rotation"], ["line=rotation", "line@solver.line=rotation"]),
        (["+line=noise"], ["+line=noise", "line@solver.line=noise"]),
        (["task=sample", "grid=null"], ["grid=null", "~grid"]),
        (["task=sample", "model.condition.label=[]"], ["model.condition.label=[]", "one or more"]),
        (["task=sample", "model.condition.label=dog"], ["label='dog'", "whole number"]),
        (["task=sample", "model.condition.label=true"], ["label=True", "whole number"]),
        (["task=sample", "model.shape=28"], ["model.shape=28", "[1,28,28]"]),
        (["task=sample", "model.guidance=[1,2]"], ["model.guidance=[1, 2]", "a number"]),
        (["task=inversion_table", "task.methods=5"], ["task.methods=5"]),
        (["task=inversion_table", "task.methods={a:1}"], ["task.methods.a is not a key", "DDIM", "+task.methods.a="]),
        (["task=inversion_table", "+task.methods.a.b=1"], ["task.methods.a: ", "must be a solvers.Solver"]),
        (["task=inversion_table", "+task.methods.a._target_=solvers.DDPM"], ["task.methods.a: ", "stochastic"]),
        (["task=inversion_table", "+task.methods.a._target_=solvers.Nope"], ["task.methods.a: ", "solvers.Nope"]),
        (["task=edit", "task.method=slerp", "solver=rk4", "samples=991"], ["samples=991", "at most 990"]),
        (["task=doctor", "samples=3"], ["samples=3", "at least 4"]),
        (["task=sample", "samples=10000000000"], ["samples=10000000000", "memory", "fewer"]),
        (["task=sample", "samples=10000000000000000000"], ["samples=10000000000000000000", "memory", "fewer"]),
        (["task=joint", "samples=10000000000000"], ["samples=10000000000000", "memory", "fewer"]),
        (["task=sample", "model.shape=[3,32,32]", "progress=false"], ["(3, 32, 32)", "model.shape=[1,28,28]"]),
        (["task.images=1001"], ["1001", "at most 1000"]),
        (["task.nfe=[]"], ["task.nfe=[]", "at least 1"]),
        (["task.images=0"], ["task.images=0", "at least 1"]),
        (["task.inversion_nfe=[0]"], ["task.inversion_nfe=[0]", "at least 1"]),
        (["task.inversion_nfe=[1]"], ["nfe=1", "Heun", "needs at least 2"]),
        (["~task"], ["~task", "task=sample"]),
        (["task=demo", "solver=heun"], ["solver=heun", "no effect", "task=sample"]),
        (["task=demo", "samples=3"], ["samples=3", "no effect", "task.images=N"]),
        (["task=evaluate", "steps=3"], ["steps=3", "no effect", "50 steps of DDIM", "task.score=true"]),
        (["task=evaluate", "task.guidance=[]"], ["task.guidance=[]", "one or more"]),
        (["task=evaluate", *IDENTITY], ["model._target_=odediff.custom.load", "leave model out"]),
        (["task=compare", "nfe=5"], ["nfe=5", "no effect", "task.nfe=[6,10,...]"]),
        (["task=compare", "model.guidance=3"], ["model.guidance=3", "no effect"]),
        (["task=compare", "samples=500"], ["samples=500", "no effect", "task.samples=N"]),
        (["task=compare", *IDENTITY], ["model=custom", "no effect", "bring a field"]),
        (["task=compare", "dtype=float32"], ["dtype=float32", "no effect", "float64"]),
        (["task=doctor", "solver.eta=1", "solver=ddim"], ["solver.eta=1", "no effect"]),
        (["task=doctor", "schedule=vp_cosine", "remap=snr"], ["schedule=vp_cosine", "no effect", "model.schedule"]),
        (["task=doctor", "dtype=float64"], ["dtype=float64", "no effect", "float32"]),
        (["task=joint", "line@solver.line=data", "solver=rk4"], ["line@solver.line=data", "no effect", "task.etas"]),
        (["task=edit", "solver=rk4"], ["solver=rk4", "no effect", "bridge and slerp"]),
        (["task=invert", "closing=null"], ["closing=null", "no effect"]),
        (["task=invert", "seed=7"], ["seed=7", "no effect"]),
        (["task=invert", "model.condition.label=3"], ["model.condition.label=3", "own labels"]),
        (["task=edit", "model.condition.label=3"], ["model.condition.label=3", "task.shift"]),
        (["task=edit", "task.method=bridge", "seed=7"], ["seed=7", "draws no random numbers"]),
        (["task=inversion_table", "rtol=1e-3"], ["rtol=1e-3", "no effect", "+task.methods.NAME"]),
        (["task=inversion_table", "seed=7"], ["seed=7", "draws no random numbers"]),
        (["task=inversion_table", "model.condition.label=3"], ["model.condition.label=3", "own labels"]),
        (["task=solvers", "solver=heun"], ["solver=heun", "no effect", "every class"]),
        (["task=sample", "data.root=nowhere"], ["data.root=nowhere", "no effect", "task=train"]),
        (["task=sample", "task.reference_steps=9"], ["task.reference_steps=9", "no effect", "add -m"]),
        (["task=sample", "remap=snr"], ["remap=snr", "no effect", "schedule=NAME"]),
        (["task=train", "seed=3"], ["seed=3", "no effect", "one recipe"]),
        (["steps=5", "line@solver.line=noise"], ["line@solver.line", "solver=rk4"]),
        (["grid=karras", "+grid.steps=3"], ["grid.steps=3", "steps=N"]),
        (["task=sample", "solver=edict", "solver.p=x"], ["solver: EDICT: p='x'", "(0, 1]"]),
        (["task=sample", "solver._target_=solvers"], ["solver: ", "callable target"]),
        (["task=sample", "model.condition=3"], ["model.condition=3", "model.condition.label=3"]),
        (["task=sample", *IDENTITY, "model.factory=3"], ["factory=3", "package.module:build"]),
        (["task=sample", *IDENTITY, "model.weights=3"], ["weights=3", ".safetensors"]),
        (["task=sample", *IDENTITY, "model.conditions=3"], ["conditions=3", "{'label': 3}"]),
        (["task=sample", *IDENTITY, "model.null=3"], ["null=3", "{'label': 3}"]),
        (["task=sample", *IDENTITY, "model.time_scale=x"], ["time_scale='x'", "finite numbers"]),
        (["task=sample", *IDENTITY, "model.integer_time=no"], ["integer_time='no'", "True or False"]),
        (["task=sample", *IDENTITY, "model.learned_variance=no"], ["learned_variance='no'", "True or False"]),
        (["task=sample", *IDENTITY, "steps=2", "progress=false"], ["TypeError", "x (8, 1, 28, 28), time (8,)"]),
        (["task=sample", "model.shape=[1,28]", "progress=false"], ["(1, 28)", "model.shape=[1,28,28]"]),
    ],
)
def test_a_wrong_value_gets_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys, arguments, expected):
    assert run(monkeypatch, tmp_path, *arguments) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("odediff: ")
    assert "\n" not in err and "Traceback" not in err
    for part in expected:
        assert part in err


@pytest.mark.parametrize("task", ["inversion_table", "demo"])
def test_a_wrong_value_is_named_before_the_network_is_asked(monkeypatch, tmp_path, capsys, task):
    def called(*arguments):
        raise AssertionError("the network was called")

    monkeypatch.setattr(UNet, "forward", called)
    wrong = {"inversion_table": "+task.methods.a._target_=solvers.DDPM", "demo": "task.images=1001"}[task]
    assert run(monkeypatch, tmp_path, f"task={task}", wrong, "progress=false") == 2


def test_a_record_that_cannot_be_written_is_named_before_anything_is_computed(monkeypatch, tmp_path, capsys):
    (tmp_path / "out" / "run.json").mkdir(parents=True)
    assert run(monkeypatch, tmp_path, "task=sample", "steps=2", "hydra.run.dir=out", *QUICK) == 2
    err = capsys.readouterr().err
    assert "out/run.json is a folder" in err and "hydra.run.dir" in err
    assert not (tmp_path / "out" / "samples.safetensors").exists()


def test_a_folder_in_the_place_of_a_picture_is_named_before_anything_is_computed(monkeypatch, tmp_path, capsys):
    (tmp_path / "out" / "samples.png").mkdir(parents=True)
    assert run(monkeypatch, tmp_path, "task=sample", "steps=2", "hydra.run.dir=out", *QUICK) == 2
    err = capsys.readouterr().err
    assert "out/samples.png is a folder" in err and "hydra.run.dir" in err
    assert not (tmp_path / "out" / "samples.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ([], []),
        (["seed=3"], ["seed=3"]),
        (["solver=heun"], ["task=sample", "solver=heun"]),
        (
            ["seed=3", "nfe=5,10", "-m", "solver=ddim,heun"],
            ["-m", "seed=3", "task=sample", "nfe=5,10", "solver=ddim,heun"],
        ),
        (["-m", "line@solver.line=data,noise"], ["-m", "task=sample", "line@solver.line=data,noise"]),
        (["task=invert", "steps=5"], ["task=invert", "steps=5"]),
        (["+experiment=editing", "steps=5"], ["+experiment=editing", "steps=5"]),
        (["task.images=2", "steps=5"], ["task.images=2", "steps=5"]),
        (["task.reference_steps=9", "steps=5"], ["task=sample", "task.reference_steps=9", "steps=5"]),
        (["solver=mine", "--config-dir=own", "-m"], ["--config-dir=own", "-m", "task=sample", "solver=mine"]),
        (["task.score=true"], ["task=sample", "task.score=true"]),
        (["task=solvers", "--info", "searchpath"], ["task=solvers", "--info", "searchpath"]),
        (["task=compare", "-cd", "own", "seed=3"], ["-cd", "own", "task=compare", "seed=3"]),
        (["--config-name=mine", "steps=5"], ["--config-name=mine", "steps=5"]),
        (["--help"], ["--help"]),
        (["task=sample", "--help", "hydra.run.dir=x"], ["--help", "task=sample", "hydra.run.dir=x"]),
        (["task=sample", "-c", "job", "seed=3"], ["-c", "job", "task=sample", "seed=3"]),
        (
            ["steps=3", "-c", "job", "--resolve", "seed=3"],
            ["-c", "job", "--resolve", "task=sample", "steps=3", "seed=3"],
        ),
        (["solver=ddim", "-c", "job", "-p", "task"], ["-c", "job", "-p", "task", "task=sample", "solver=ddim"]),
    ],
)
def test_words_that_describe_a_sampling_mean_the_task_of_sampling(given, completed):
    assert app.completed(given) == completed


def test_a_variable_that_another_word_refers_to_is_no_unknown_key(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, "steps=2", "+n=3", "seed=${n}", *QUICK) == 0


def test_an_unknown_key_beside_a_solver_of_the_users_own_is_told_with_those_that_exist(monkeypatch, tmp_path, capsys):
    (tmp_path / "own" / "solver").mkdir(parents=True)
    (tmp_path / "own" / "solver" / "mine.yaml").write_text("_target_: solvers.DDIM\n")
    assert run(monkeypatch, tmp_path, f"--config-dir={tmp_path / 'own'}", "solver=mine", "stpes=3") == 2
    assert "did you mean steps?" in capsys.readouterr().err


def test_a_solver_and_a_number_of_calls_are_all_that_a_sampling_takes(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "solver=heun", "nfe=5", "hydra.run.dir=out", *QUICK) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["solver"].startswith("Heun") and record["nfe"] == 5


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ("_target_: mygrid.cubic", None),
        ("_target_: mygrid.cubic\n_partial_: true", None),
        ("_target_: mygrid.power\npower: 2", None),
        ("_target_: mygrid.nope", "Error locating target 'mygrid.nope'"),
        ("power: 2", "is not a grid; pass a function"),
    ],
)
def test_a_grid_of_ones_own_is_a_function_or_what_makes_one(monkeypatch, tmp_path, capsys, described, said):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mygrid.py").write_text(
        "import torch\n\n\ndef cubic(path, steps):\n    return torch.linspace(1, 0, steps + 1).double() ** 3\n\n\n"
        "def power(power):\n    return lambda path, steps: torch.linspace(1, 0, steps + 1).double() ** power\n"
    )
    (tmp_path / "own" / "grid").mkdir(parents=True)
    (tmp_path / "own" / "grid" / "mine.yaml").write_text(described)
    words = ["grid=mine", f"--config-dir={tmp_path / 'own'}", "steps=3", "hydra.run.dir=out", *QUICK]
    assert run(monkeypatch, tmp_path, *words) == (2 if said else 0)
    assert said is None or said in capsys.readouterr().err


@pytest.mark.parametrize(("described", "expected"), [("", 3), ("chunk: 5", 5), ("chunk: null", None)])
def test_a_model_keeps_its_own_chunk_unless_one_is_given(monkeypatch, tmp_path, described, expected):
    (tmp_path / "chunked.py").write_text(
        "import odediff\n\n\ndef build(device):\n"
        "    return odediff.Model(lambda x, time: x, odediff.VPTable.linear(), chunk=3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text(f"_target_: chunked.build\nshape: [2]\n{described}\n")
    built = []
    monkeypatch.setattr(sample_task, "build", lambda config: built.append(build(config)) or built[0])
    words = [f"--config-dir={tmp_path / 'own'}", "model=mine", "task=sample", "steps=2", "samples=3", "progress=false"]
    assert run(monkeypatch, tmp_path, *words) == 0
    assert built[0].model.chunk == expected


def test_a_folder_among_the_pictures_is_none_of_them(tmp_path):
    (tmp_path / "a.png").mkdir()
    imsave(tmp_path / "b.png", np.zeros((28, 28)), cmap="gray", vmin=-1, vmax=1)
    images, labels = load_images(str(tmp_path), 1, (1, 28, 28))
    assert images.shape == (1, 1, 28, 28) and labels is None


def test_a_grey_picture_has_three_equal_channels_for_a_model_of_colours(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "grey.png")
    images, _ = load_images(str(tmp_path), 1, (3, 8, 8))
    assert torch.equal(images[0, 0], images[0, 1]) and torch.equal(images[0, 1], images[0, 2])


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_that_pillow_refuses_is_named_whatever_error_it_raises(monkeypatch, tmp_path, suffix):
    file = tmp_path / f"refused{suffix}"
    text = PngInfo()
    text.add_text("Comment", "a" * 2**21, zip=True)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(file, **({"pnginfo": text} if suffix == ".png" else {}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 28)  # of which DecompressionBombError allows twice as many
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} is not a readable picture .*; leave it out"):
        load_images(str(tmp_path), 1, (1, 28, 28))


def test_sample_writes_images_a_picture_and_a_record(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "task=sample", "solver=ddim", "steps=4", "hydra.run.dir=out", *QUICK) == 0
    out = tmp_path / "out"
    record = json.loads((out / "run.json").read_text())
    assert (record["nfe"], record["network_evaluations"]) == (4, 8)
    assert record["config"]["steps"] == 4 and torch.__version__.startswith(
        record["versions"]["torch"].partition("+")[0]
    )
    assert (out / "samples.png").stat().st_size > 1000
    images = load_file(out / "samples.safetensors")["samples"]
    model = odediff.zoo.fashion_mnist().condition(label=torch.arange(3), guidance=2.0)
    expected = odediff.sample(model, (3, 1, 28, 28), solver=solvers.DDIM(), steps=4, seed=0)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    assert not list(out.glob(".*.png"))


def test_a_rerun_gives_the_same_bits(monkeypatch, tmp_path):
    for folder in ("one", "two"):
        run(monkeypatch, tmp_path, "task=sample", "steps=3", f"hydra.run.dir={folder}", *QUICK)
    one, two = (load_file(tmp_path / folder / "samples.safetensors")["samples"] for folder in ("one", "two"))
    assert torch.equal(one, two)


def test_invert_returns_the_images(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, "task=invert", "steps=12", "model.guidance=1", "hydra.run.dir=out", *QUICK) == 0
    tensors = load_file(tmp_path / "out" / "inversion.safetensors")
    error = (tensors["reconstruction"] - tensors["image"]).square().mean().sqrt()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["error"] == pytest.approx(float(error), rel=1e-5)
    assert torch.equal(tensors["image"], odediff.zoo.test_images()[0][:3])


@pytest.mark.parametrize("task", ["invert", "inversion_table"])
def test_a_network_without_classes_is_inverted(monkeypatch, tmp_path, task):
    (tmp_path / "unconditional.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x, time):\n        return 0.1 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = [
        "model=custom",
        "model.factory=unconditional.Net",
        "model.shape=[1,28,28]",
        "samples=3",
        "progress=false",
    ]
    assert run(monkeypatch, tmp_path, f"task={task}", "steps=4", "hydra.run.dir=out", *network) == 0
    assert (tmp_path / "out" / "run.json").exists()


def coloured(monkeypatch, tmp_path) -> list[str]:
    """The words that choose a network of one's own on images of three colours."""
    (tmp_path / "coloured.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x, time):\n        return 0.9 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return ["model=custom", "model.factory=coloured.Net", "model.shape=[3,8,8]", "progress=false"]


def test_the_doctor_asks_a_network_of_another_shape_about_noise_alone(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "task=doctor", "hydra.run.dir=out", *coloured(monkeypatch, tmp_path)) in (0, 1)
    out, err = capsys.readouterr()
    assert "task.images=FOLDER" in out and not err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["report"] in out


def test_the_demonstration_leaves_out_the_round_trip_of_images_that_it_has_none_of(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "_paths", lambda run: {})
    words = ["task.images=2", "task.nfe=[5]", "hydra.run.dir=out", *coloured(monkeypatch, tmp_path)]
    assert run(monkeypatch, tmp_path, *words) == 0
    assert "task=invert task.images=FOLDER" in capsys.readouterr().out
    assert {"samples", "paths"} <= json.loads((tmp_path / "out" / "run.json").read_text()).keys() - {"inversion"}
    assert run(monkeypatch, tmp_path, *words, "model.shape=[2]") == 2
    assert "use task=sample" in capsys.readouterr().err
    assert run(monkeypatch, tmp_path, *words[2:], "model.shape=[2]", "task=sample", "steps=2") == 0
    assert load_file(tmp_path / "out" / "samples.safetensors")["samples"].shape == (16, 2)


@pytest.mark.parametrize("method", ["null_text", "bridge", "slerp", "cycle_diffusion"])
def test_edit_leaves_a_picture_and_the_classifiers_word(monkeypatch, tmp_path, method):
    arguments = [
        "task=edit",
        f"task.method={method}",
        "solver=ddim",
        "steps=4",
        "model.guidance=3",
        "hydra.run.dir=out",
    ]
    assert run(monkeypatch, tmp_path, *arguments, *QUICK) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (tmp_path / "out" / ("slerp.png" if method == "slerp" else "edit.png")).stat().st_size > 1000
    if method == "slerp":
        assert len(record["classified_as_asked"]) == 6
        return
    code = odediff.Code.load(tmp_path / "out" / "code.safetensors")
    tensors = load_file(tmp_path / "out" / "edit.safetensors")
    assert torch.equal(tensors["image"], odediff.zoo.test_images()[0][:3])
    found = odediff.metrics.psnr(tensors["image"], tensors["reconstruction"])
    assert record["psnr"] == pytest.approx(found.tolist(), rel=1e-6) and tensors["edit"].shape == (3, 1, 28, 28)
    labels = odediff.zoo.test_images()[1][:3]
    assert record["targets"] == ((labels + 1) % 10).tolist()
    again = odediff.decode(odediff.zoo.fashion_mnist().condition(label=labels, guidance=3.0), code)
    expected = odediff.metrics.psnr(odediff.zoo.test_images()[0][:3], again)
    assert record["psnr"] == pytest.approx(expected.tolist(), rel=0.05 if method == "cycle_diffusion" else 1e-3)


def test_the_table_of_inversions_shows_who_returns(monkeypatch, tmp_path):
    arguments = ["+experiment=inversion_table", "steps=6", "task.reference_steps=8", "hydra.run.dir=out"]
    assert run(monkeypatch, tmp_path, *arguments, *QUICK, "samples=2") == 0
    rows = {row["method"]: row for row in json.loads((tmp_path / "out" / "run.json").read_text())["table"]}
    assert rows["DDIM"]["with pair"] > 0.1 and rows["DDIM"]["without"] is None
    for name in ("EDICT", "BDIA", "O-BELM", "Asynchronous leapfrog", "McCallum-Foster, RK4"):
        assert rows[name]["with pair"] == 0 < rows[name]["without"]
    assert (tmp_path / "out" / "inversion_table.png").stat().st_size > 1000


def test_a_sweep_ends_in_one_table_and_one_plot(monkeypatch, tmp_path, capsys):
    arguments = ["-m", "task=sample", "solver=ddim,ddpm", "nfe=4,6", "task.reference_steps=4", "hydra.sweep.dir=out"]
    assert run(monkeypatch, tmp_path, *arguments, *QUICK) == 0
    with (tmp_path / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["solver"].partition("(")[0], row["nfe"]) for row in rows] == [
        ("DDIM", "4"),
        ("DDIM", "6"),
        ("DDPM", "4"),
        ("DDPM", "6"),
    ]
    assert float(rows[1]["error"]) > 0 and rows[2]["error"] == ""
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
    assert "sweep" not in capsys.readouterr().err


def test_a_sweep_of_a_network_of_whole_times_has_its_errors(monkeypatch, tmp_path):
    (tmp_path / "whole.py").write_text(
        "import torch\n\nclass Mine(torch.nn.Module):\n    def forward(self, x, time):\n"
        "        return 0.1 * x * (time.view(-1, 1, 1, 1) + 1) / 1000\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ["model=custom", "model.factory=whole.Mine", "model.shape=[1,4,4]", "model.integer_time=true"]
    arguments = ["-m", "task=sample", "solver=ddim", "nfe=5,50", "task.reference_steps=60", "hydra.sweep.dir=out"]
    assert run(monkeypatch, tmp_path, *arguments, *own, *QUICK) == 0
    with (tmp_path / "out" / "sweep.csv").open() as file:
        few, many = (float(row["error"]) for row in csv.DictReader(file))
    assert many < few / 5


def test_a_sweep_collects_its_own_jobs_and_none_that_were_there(monkeypatch, tmp_path, capsys):
    arguments = ["-m", "task=sample", "task.reference_steps=2", "hydra.sweep.dir=out", *QUICK]
    assert run(monkeypatch, tmp_path, *arguments, "solver=ddim", "nfe=3,4") == 0
    for file in (tmp_path / "out").glob("*/run.json"):
        os.utime(file, (0, 0))
    assert (
        run(monkeypatch, tmp_path, *arguments, "solver=heun", "nfe=5", "hydra.sweep.subdir=deep/${hydra.job.num}") == 0
    )
    assert run(monkeypatch, tmp_path, *arguments, "solver=heun", "nfe=5") == 0
    jobs = json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]
    assert [(job["folder"], job["nfe"]) for job in jobs] == [("0", 5)]
    assert capsys.readouterr().out.count("table and picture in") == 3


def test_a_sweep_finds_its_jobs_in_folders_whose_names_contain_folders(monkeypatch, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    imsave(tmp_path / "pictures" / "one.png", np.zeros((28, 28, 3)))
    words = ["task=invert", "task.images=./pictures", "solver=ddim", "steps=3,4", "progress=false"]
    named = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    assert run(monkeypatch, tmp_path, "-m", *words, "samples=1", "hydra.sweep.dir=out", named) == 0
    jobs = json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]
    assert [job["steps"] for job in jobs] == ["3", "4"] and all("/" in job["folder"] for job in jobs)
    assert run(monkeypatch, tmp_path, "-m", *words, "samples=2", "hydra.sweep.dir=other", named) == 1
    assert "2 of 2 jobs failed" in capsys.readouterr().err


def test_a_sweep_that_is_resumed_keeps_what_has_ended_and_computes_the_rest(monkeypatch, tmp_path, capsys):
    arguments = ["-m", "task=sample", "task.reference_steps=null", "hydra.sweep.dir=out", *QUICK, "solver=ddim"]
    assert run(monkeypatch, tmp_path, *arguments, "nfe=3,4,5") == 0
    records = [tmp_path / "out" / str(number) / "run.json" for number in range(3)]
    before = [json.loads(file.read_text()) for file in records]
    records[1].unlink()  # as if it had been stopped in the midst of this job
    for file in tmp_path.glob("out/*/*"):
        os.utime(file, (0, 0))
    capsys.readouterr()
    assert run(monkeypatch, tmp_path, *arguments, "nfe=3,4,5", "resume=true") == 0
    out = capsys.readouterr().out
    assert out.count("done before") == 2
    assert [line.split()[1] for line in out.splitlines() if line.startswith("DDIM")] == ["3", "4", "5"]
    after = [json.loads(file.read_text()) for file in records]
    for number in (0, 2):
        assert {**before[number], "overrides": after[number]["overrides"]} == after[number]
    assert after[1]["nfe"] == 4 and after[1]["seconds"] > 0
    assert run(monkeypatch, tmp_path, *arguments, "nfe=3,4,5", "resume=true", "seed=1") == 0
    assert "done before" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "solver",
    [
        ["solver=ddim", "solver._target_=mine_to_resume.MyDDIM"],
        ["solver=reversible", "solver@solver.base=ddim", "solver.base._target_=mine_to_resume.MyDDIM"],
    ],
)
def test_a_sweep_that_is_resumed_repeats_the_jobs_of_a_solver_that_was_changed(monkeypatch, tmp_path, capsys, solver):
    file = tmp_path / "mine_to_resume.py"
    file.write_text("from solvers import DDIM\n\n\nclass MyDDIM(DDIM):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_to_resume", raising=False)
    done = []
    for change in ("", "", "# changed\n"):
        file.write_text(file.read_text() + change)
        words = ["-m", "task=sample", "task.reference_steps=null", "hydra.sweep.dir=out", *QUICK, *solver, "nfe=5"]
        assert run(monkeypatch, tmp_path, *words, "resume=true") == 0
        done.append("done before" in capsys.readouterr().out)
    assert done == [False, True, False]


OWN_PARTS = """
import torch
import odediff

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
    def forward(self, x, t):
        return x * self.weight / 2

def build():
    return Mine()

def grid(path, steps):
    return odediff.grid.log_snr(path, steps)

class Path(odediff.VPLinear):
    pass
"""


@pytest.mark.parametrize(
    "part",
    [
        ["+grid._target_=parts_to_resume.grid"],
        ["+schedule._target_=parts_to_resume.Path", "remap=snr"],
        [*IDENTITY, "model.factory=parts_to_resume.Mine"],
        [*IDENTITY, "model.factory=parts_to_resume:build"],
    ],
    ids=lambda part: part[-1],
)
def test_a_resumed_sweep_repeats_the_jobs_of_parts_of_ones_own_that_were_changed(monkeypatch, tmp_path, capsys, part):
    file = tmp_path / "parts_to_resume.py"
    file.write_text(OWN_PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "parts_to_resume", raising=False)
    words = ["-m", "task=sample", "solver=ddim", "hydra.sweep.dir=out", *QUICK, *part, "steps=2", "resume=true"]
    done = []
    for change in ("", "", "# changed\n"):
        file.write_text(file.read_text() + change)
        assert run(monkeypatch, tmp_path, *words, "task.reference_steps=3") == 0
        done.append("done before" in capsys.readouterr().out)
    assert done == [False, True, False]
    references = [*(tmp_path / "out").glob("reference-*")]
    assert len(references) == (1 if "+grid._target_=parts_to_resume.grid" in part else 2)


def test_a_resumed_sweep_repeats_the_jobs_of_pictures_that_were_changed(monkeypatch, tmp_path, capsys):
    words = ["-m", "task=invert", "task.images=.", "solver=ddim", "steps=2", "hydra.sweep.dir=out", *QUICK]
    done = []
    for changed in (0, 0, 1, 3):
        for number in range(4):
            colour = np.full((28, 28), 90 if number < changed else 0, np.uint8)
            Image.fromarray(colour).save(tmp_path / f"{number}.png")
        assert run(monkeypatch, tmp_path, *words, "resume=true") == 0
        done.append("done before" in capsys.readouterr().out)
    assert done == [False, True, False, False]
    Image.fromarray(np.ones((28, 28), np.uint8)).save(tmp_path / "3.png")  # beyond the three that are read
    assert run(monkeypatch, tmp_path, *words, "resume=true") == 0
    assert "done before" in capsys.readouterr().out


def test_a_sweep_over_schedules_may_contain_the_networks_own(monkeypatch, tmp_path, capsys):
    words = ["-m", "task=sample", "task.reference_steps=null", "solver=ddim", "steps=2", *QUICK, "remap=snr"]
    assert run(monkeypatch, tmp_path, *words, "schedule=null,vp_cosine", "hydra.sweep.dir=out") == 0
    assert "failed" not in capsys.readouterr().out
    described = [json.loads((tmp_path / "out" / job / "run.json").read_text())["schedule"] for job in "01"]
    assert described[0] != described[1]


def test_a_run_knows_the_code_of_solvers_of_ones_own_that_its_task_names(monkeypatch, tmp_path):
    file = tmp_path / "mine_to_tabulate.py"
    file.write_text("from solvers import DDIM\n\n\nclass MyDDIM(DDIM):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = partial(
        Run, folder=tmp_path, condition={}, model=odediff.zoo.fashion_mnist(), solver=solvers.DDIM(), grid=None
    )
    methods = {"mine": {"_target_": "mine_to_tabulate.MyDDIM"}, "unknown": {"_target_": "nowhere.Nothing"}}
    configs = [OmegaConf.create({"task": task}) for task in ({"methods": methods}, {"images": None})]
    before, without = (run(config=config, shape=(1, 28, 28)).describes for config in configs)
    file.write_text(file.read_text() + "# changed\n")
    after = run(config=configs[0], shape=(1, 28, 28)).describes
    assert before["code"] != after["code"] and "code" not in without


def test_a_resumed_sweep_keeps_the_jobs_of_every_task_and_their_columns(monkeypatch, tmp_path, capsys):
    arguments = ["-m", "task=joint", "samples=2000", "steps=5,6", "hydra.sweep.dir=out"]
    assert run(monkeypatch, tmp_path, *arguments) == 0
    capsys.readouterr()
    assert run(monkeypatch, tmp_path, *arguments, "resume=true", "progress=false") == 0
    out = capsys.readouterr().out
    assert out.count("done before") == 2 and "progress " not in out and "resume " not in out


def test_a_single_run_has_nothing_to_resume(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "solver=ddim", "resume=true", "hydra.sweep.dir=out", *QUICK) == 2
    assert "resume=true needs a sweep: give -m and its folder" in capsys.readouterr().err


def test_a_failed_job_is_named_and_leaves_the_others_their_table(monkeypatch, tmp_path, capsys):
    arguments = ["-m", "task=sample", "solver=ddim", "solver.eta=0,7,1", "steps=2", "task.reference_steps=null"]
    assert run(monkeypatch, tmp_path, *arguments, "hydra.sweep.dir=out", *QUICK) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines() if line.startswith("DDIM")] == ["DDIM(eta=0)", "DDIM(eta=1)"]
    jobs = json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]
    assert [(job["folder"], job["solver"]) for job in jobs] == [("0", "DDIM(eta=0)"), ("2", "DDIM(eta=1)")]
    reason, summary = err.strip().splitlines()
    assert "eta=7" in reason and summary == "odediff: 1 of 3 jobs failed, see their run.json: 1 solver.eta=7"
    assert json.loads((tmp_path / "out" / "1" / "run.json").read_text())["failed"] in reason


def test_the_doctor_of_a_sweep_goes_on_after_a_network_with_faults(monkeypatch, tmp_path, capsys):
    words = ["task=doctor", "samples=4", *coloured(monkeypatch, tmp_path), "hydra.sweep.dir=out"]
    assert run(monkeypatch, tmp_path, "-m", *words, "model.prediction=v,epsilon,x0") == 1
    out, err = capsys.readouterr()
    jobs = [json.loads((tmp_path / "out" / job / "run.json").read_text()) for job in "012"]
    assert [job["ok"] for job in jobs] == [False, True, False] and ["report" in job for job in jobs] == [True] * 3
    assert "2 of 3 jobs failed" in err and "0 model.prediction=v" in err and "2 model.prediction=x0" in err
    assert run(monkeypatch, tmp_path, *words, "model.prediction=v") == 1


def test_a_sweep_that_records_no_calls_says_that_it_has_no_table(monkeypatch, tmp_path, capsys):
    words = ["task=doctor", "samples=4", *coloured(monkeypatch, tmp_path), "hydra.sweep.dir=out"]
    assert run(monkeypatch, tmp_path, "-m", *words, "model.prediction=epsilon", "seed=0,1") == 0
    assert (
        "no table: this task records no number of calls; see the run.json of each job in out" in capsys.readouterr().out
    )


def without_wishes(monkeypatch) -> None:
    """No word in the environment on tracebacks; what the application puts there goes with the test."""
    for name in ("HYDRA_FULL_ERROR", "ODEDIFF_ONE_LINE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_whatever_a_network_raises_is_one_line_with_its_place(monkeypatch, tmp_path, capsys):
    without_wishes(monkeypatch)
    words = ["task=sample", "steps=2", *coloured(monkeypatch, tmp_path), "model.factory=keyed.Net"]
    (tmp_path / "keyed.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x, time):\n        return {}['x']\n"
    )
    assert run(monkeypatch, tmp_path, *words) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("odediff: KeyError: 'x'; the network was called with x (8, 3, 8, 8), time (8,) (keyed.py:6;")


def test_a_fault_of_ours_keeps_its_traceback_and_leaves_the_other_jobs_their_table(monkeypatch, tmp_path, capsys):
    right = sample_task.sample

    def broken(*arguments, seed, **keywords):
        return right(*arguments, seed=seed, **keywords) if seed else 1 / 0

    monkeypatch.setattr(sample_task, "sample", broken)
    arguments = ["task=sample", "solver=ddim", "steps=2", "task.reference_steps=null", "hydra.sweep.dir=out", *QUICK]
    assert run(monkeypatch, tmp_path, "-m", *arguments, "seed=0,1") == 1
    out, err = capsys.readouterr()
    assert "Traceback" in err and err.rstrip().endswith("1 of 2 jobs failed, see their run.json: 0 seed=0")
    assert [row["seed"] for row in json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]] == ["1"]
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, tmp_path, *arguments, "seed=0")


def test_null_is_one_of_the_grids_of_a_sweep(monkeypatch, tmp_path):
    arguments = ["task=sample", "solver=gp_multistep", "grid=null,karras", "steps=3", "task.reference_steps=null"]
    assert run(monkeypatch, tmp_path, "-m", *arguments, "hydra.sweep.dir=out", *QUICK) == 0
    assert [job["grid"] for job in json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]] == [None, "karras"]
    own, karras = (load_file(tmp_path / "out" / name / "samples.safetensors")["samples"] for name in "01")
    model = odediff.zoo.fashion_mnist().condition(label=torch.arange(3), guidance=2.0)
    torch.testing.assert_close(own, odediff.sample(model, (3, 1, 28, 28), steps=3), rtol=0, atol=1e-4)
    assert (own - karras).abs().max() > 0.1


def swept(tmp_path, summary, *jobs: tuple[list[str], dict]) -> None:
    """Summarise jobs that were given these words and have measured this."""
    for number, (words, measured) in enumerate(jobs):
        record = {"overrides": words, "solver": "AdaptiveAdams(rtol=0.1)", "versions": {}, **measured}
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "run.json").write_text(json.dumps(record))
    hydra = {"sweep": {"dir": str(tmp_path), "subdir": "0"}, "overrides": {"task": []}}
    summary.on_multirun_end(OmegaConf.create({"hydra": hydra}))


def test_tolerances_and_steps_lie_on_one_curve_and_all_else_makes_another(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(sweep, "curves", lambda path, series, *labels: drawn.update(series))
    jobs = [
        (["task=sample", f"solver={name}", f"seed={seed}", f"rtol={rtol}"], {"nfe": nfe, "error": rtol})
        for name, seed in (("adams", 0), ("adams", 1), ("scipy", 0))
        for rtol, nfe in ((0.1, 8), (0.01, 17))
    ]
    swept(tmp_path, sweep.SweepSummary(), *jobs)
    points = [(8, 0.1), (17, 0.01)]
    names = ("solver=adams seed=0", "solver=adams seed=1", "solver=scipy seed=0")
    assert drawn == dict.fromkeys(names, points)
    rows = json.loads((tmp_path / "run.json").read_text())["jobs"]
    assert [(row["seed"], row["rtol"]) for row in rows] == [(s, r) for s in "010" for r in ("0.1", "0.01")]


def test_a_sweep_over_tolerances_alone_is_a_curve_named_by_its_solver(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(sweep, "curves", lambda path, series, *labels: drawn.update(series))
    swept(tmp_path, sweep.SweepSummary(), *(([f"rtol={r}"], {"nfe": n, "error": r}) for r, n in ((0.1, 8), (0.01, 17))))
    assert drawn == {"AdaptiveAdams": [(8, 0.1), (17, 0.01)]}


def test_a_gallery_in_which_two_jobs_share_a_cell_says_so(tmp_path, capsys):
    jobs = [([f"nfe={ceiling}"], {"nfe": 4, "steps": 2}) for ceiling in (4, 5)]
    swept(tmp_path, sweep.SweepSummary(x="steps", note="{nfe}"), *jobs)
    assert "no picture: 2 jobs do not fill 1 rows of 1 cells" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run.json").read_text())["jobs"]) == 2


def test_a_picture_without_scores_has_no_note(monkeypatch, tmp_path, capsys):
    arguments = ["+experiment=ddim_vs_ddpm", "task.score=false", "steps=2", "solver=ddim", "hydra.sweep.dir=out"]
    assert run(monkeypatch, tmp_path, *arguments, *QUICK) == 0
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000


def test_calls_replace_the_steps_that_an_experiment_sweeps_over(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, "+experiment=skip_steps", "nfe=4", "hydra.sweep.dir=out", *QUICK) == 0
    jobs = json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]
    assert [job["steps"] for job in jobs] == [4, 4]


def test_the_command_line_replaces_what_an_experiment_sweeps_over(monkeypatch, tmp_path, capsys):
    arguments = ["+experiment=eta_sweep", "steps=2,3", "solver.eta=1", "hydra.sweep.dir=out"]
    assert run(monkeypatch, tmp_path, *arguments, *QUICK) == 0
    jobs = json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]
    assert [(job["solver"], job["steps"]) for job in jobs] == [("DDIM(eta=1)", 2), ("DDIM(eta=1)", 3)]


def test_samples_are_scored_by_the_embedded_classifier(monkeypatch, tmp_path):
    arguments = ["task=sample", "task.score=true", "solver=ddim", "steps=4", "hydra.run.dir=out", *QUICK]
    for more, known in ((["samples=12"], True), (["model.condition.label=null", "model.guidance=1"], False)):
        assert run(monkeypatch, tmp_path, *arguments, *more) == 0
        images = load_file(tmp_path / "out" / "samples.safetensors")["samples"].clamp(-1, 1)
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        network = odediff.zoo.classifier()
        features, (mean, covariance) = network.features(images).double().numpy(), odediff.zoo.feature_statistics()
        # The trace of the root of a product, by the eigenvalues of the product itself.
        overlap = np.sqrt(np.linalg.eigvals(np.cov(features.T) @ covariance.numpy()).real.clip(0)).sum()
        distance = ((features.mean(0) - mean.numpy()) ** 2).sum() + np.cov(features.T).trace() - 2 * overlap
        assert record["frechet"] == pytest.approx(distance + float(covariance.trace()), rel=1e-3)
        right = (network(images).argmax(1) == torch.arange(len(images)) % 10).double().mean()
        assert record["accuracy"] == (float(right) if known else None)


def test_the_demonstration_leaves_its_pictures_in_one_folder(monkeypatch, tmp_path):
    arguments = ["task.images=2", "task.nfe=[5]", "task.inversion_nfe=[4]", "hydra.run.dir=out", "progress=false"]
    assert run(monkeypatch, tmp_path, *arguments) == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"solvers.png", "paths.png", "inversion.png", "inversion_error.png", "run.json"} <= written


def test_the_demonstration_draws_on_the_device_of_the_run(monkeypatch):
    class Drawn(Exception):
        pass

    def sampled(*arguments, noise, **keywords):
        raise Drawn(noise.device.type, tuple(noise.shape))

    monkeypatch.setattr(demo, "sample", sampled)
    monkeypatch.setattr(demo, "reference_end", lambda model, noise, *settings: noise)
    described = SimpleNamespace(
        config=SimpleNamespace(device="meta", seed=0),
        shape=(1, 28, 28),
        dtype=torch.float32,
        model=odediff.zoo.fashion_mnist(),
        conditioned=lambda count: None,
        progress=False,
    )
    for part, arguments, count in ((demo._samples, (3, [5]), 3), (demo._paths, (), 2)):
        with pytest.raises(Drawn) as drawn:
            part(described, *arguments)
        assert drawn.value.args == ("meta", (count, 1, 28, 28))


def a_run_of(model):
    """What the demonstration reads of a run."""
    return SimpleNamespace(
        config=SimpleNamespace(device="cpu", seed=0),
        shape=(1, 8, 8),
        dtype=torch.float64,
        model=model,
        conditioned=lambda count: model,
        progress=False,
        folder=Path(),
    )


def test_the_demonstration_starts_where_its_path_starts_and_tells_true_times(monkeypatch):
    path, sampled, drawn = odediff.VE(), [], {}

    def keep(file, cells, rows, columns, *others, **settings):
        drawn["columns"] = columns

    def sample(model, *, noise, **settings):
        sampled.append(noise)
        return odediff.sample(model, noise=noise, **settings)

    monkeypatch.setattr(demo, "sample", sample)
    monkeypatch.setattr(demo, "labelled_grid", keep)
    model = odediff.Model(lambda x, time: x / time[:, None, None, None], path)
    demo._paths(a_run_of(model))
    assert float(sampled[0].std()) == pytest.approx(path.start, rel=0.2)
    told = [float(column.removeprefix("t = ")) for column in drawn["columns"]]
    assert told == pytest.approx([part * path.start for part in demo.SHOWN], abs=1.0)


def test_the_demonstration_makes_no_more_calls_than_it_was_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(demo, "labelled_grid", lambda *arguments, **settings: None)
    model = odediff.Model(lambda x, time: x, odediff.VPTable.linear())
    described = a_run_of(model)
    for ceiling in (1, 2, 4):
        assert all(row["nfe"] <= ceiling for row in demo._samples(described, 2, [ceiling]))


def test_a_solver_of_the_users_own_runs_by_its_name(monkeypatch, tmp_path):
    (tmp_path / "mine_for_the_test.py").write_text(readme_blocks("python")[2])
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["task=sample", "solver._target_=mine_for_the_test.MyDDIM", "steps=3"]
    assert run(monkeypatch, tmp_path, *arguments, "hydra.run.dir=out", *QUICK) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["solver"] == "MyDDIM()"


def test_another_schedule_is_reached_by_equal_signal_to_noise_ratio(monkeypatch, tmp_path):
    arguments = ["task=sample", "schedule=vp_cosine", "remap=snr", "steps=3", "hydra.run.dir=out"]
    assert run(monkeypatch, tmp_path, *arguments, *QUICK) == 0


def test_the_task_of_solvers_prints_the_table(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "task=solvers") == 0
    assert capsys.readouterr().out.strip() == solver_table()


def test_help_shows_groups_and_examples(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "--help") == 0
    out = capsys.readouterr().out
    assert "solver: adams, " in out and "odediff task=invert" in out
    assert "\nline@solver.line: data, noise, rotation\n" in out
    assert "\nline: " not in out and "schema" not in out and "hydra" not in out
    assert "\ninvert: encode real images and decode them\n" in out and "\nnfe: at most so many evaluations" in out
    for explained in (*TASKS, *(one.name for one in fields(Config))):
        assert re.search(rf"^{explained}: \w.*\w$", out, flags=re.MULTILINE), explained


def test_help_may_be_anywhere_on_the_command_line(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "task=invert", "--help", "hydra.run.dir=x") == 0
    assert "_target_: odediff.tasks.invert.run" in capsys.readouterr().out and not (tmp_path / "x").exists()


def test_the_version_is_odediffs(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "--version") == 0
    assert capsys.readouterr().out == f"odediff {odediff.__version__}\n"


def test_the_module_runs_as_a_command_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "odediff", "solver=foo"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1


def readme_blocks(language: str) -> list[str]:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_a_terminal_of_few_letters_shows_their_codes(tmp_path):
    command = [sys.executable, "-m", "odediff", "solver=ddim", "steps=2", "samples=1", "hydra.run.dir='\u00fc'"]
    letters = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=letters)
    assert done.returncode == 0 and "\\xfc" in done.stdout
    assert (tmp_path / "\u00fc" / "samples.png").is_file()


def test_a_run_whose_errors_go_nowhere_ends_as_any_other(tmp_path):
    command = f"exec {sys.executable} -m odediff solver=ddim steps=2 samples=1 hydra.run.dir=out 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "run.json").is_file()


def test_the_console_script_finds_a_solver_where_it_is(tmp_path):
    (tmp_path / "mine.py").write_text("import solvers\n\nclass Mine(solvers.DDIM):\n    pass\n")
    script = Path(sys.executable).with_name("odediff")
    command = [script, "solver._target_=mine.Mine", "steps=2", "samples=1", "hydra.run.dir=out", "progress=false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Mine" in done.stdout


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path):
    command = f"{sys.executable} -m odediff --help | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("odediff: ") and done.stderr == ""


def test_the_readmes_library_lines_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    whole, explicit, _, inversion = readme_blocks("python")
    exec(compile(whole, "README.md", "exec"), scope := {})
    exec(compile(inversion, "README.md", "exec"), scope)
    assert torch.equal(scope["again"], scope["real"][:8])
    assert not torch.equal(scope["edited"], scope["again"])
    scope = {
        "odediff": odediff,
        "solvers": solvers,
        "network": lambda x, time: x,
        "x": torch.randn(2, 3),
        "image": torch.randn(2, 3),
    }
    exec(compile(explicit, "README.md", "exec"), scope)
    assert scope["sol"].stats.nfe == 20


def test_the_readmes_solver_passes_its_check():
    scope: dict = {}
    exec(compile(readme_blocks("python")[2], "README.md", "exec"), scope)
    solvers.testing.check(scope["MyDDIM"]())


def readme_commands() -> list[list[str]]:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    lines = re.findall(r"^    python -m odediff (.*?)(?:\s{2,}#.*)?$", text, flags=re.MULTILINE)
    return [line.split() for line in lines if "pkg.build" not in line]


@pytest.mark.parametrize("arguments", readme_commands(), ids=" ".join)
def test_the_readmes_commands_run(monkeypatch, tmp_path, arguments):
    small = [] if "--help" in arguments else ["progress=false"]
    if small and arguments[0] not in ("task=compare", "task=solvers"):  # these have no use for a model or its samples
        small += ["samples=2", "model.chunk=2"]
    assert run(monkeypatch, tmp_path, *arguments, *small) == 0


def test_a_tolerance_on_the_command_line(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "task=sample", "solver=adams", "rtol=1e-2", "hydra.run.dir=out", *QUICK) == 0
    assert "AdaptiveAdams(rtol=0.01" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert 5 < record["nfe"] < 25 and len(record["times"]) == 3


def test_a_tolerance_without_a_solver_takes_the_librarys(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "task=sample", "rtol=1e-1", "hydra.run.dir=out", *QUICK) == 0
    assert "AdaptiveAdams(rtol=0.1" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["solver"].startswith("AdaptiveAdams(rtol=0.1")


def test_what_fails_in_a_network_of_ones_own_is_placed_and_shown_whole_at_wish(monkeypatch, tmp_path, capsys):
    without_wishes(monkeypatch)
    words = ["task=sample", "steps=2", *coloured(monkeypatch, tmp_path), "model.factory=mismatched.Net"]
    (tmp_path / "mismatched.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x, time):\n"
        "        raise ValueError('shape mismatch')\n"
    )
    for _ in range(2):
        assert run(monkeypatch, tmp_path, *words) == 2
        line = "odediff: shape mismatch (mismatched.py:6; HYDRA_FULL_ERROR=1 shows the whole traceback)"
        assert capsys.readouterr().err.strip() == line
    monkeypatch.delenv("ODEDIFF_ONE_LINE")
    assert run(monkeypatch, tmp_path, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and 'mismatched.py", line 6, in forward' in err
    assert run(monkeypatch, tmp_path, "steps=abc") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [SafetensorError, lambda text: OSError(errno.ENOSPC, text)], ids=["tensors", "file"])
def test_a_full_disk_is_named_with_its_remedy(monkeypatch, tmp_path, capsys, kind):
    def refused(tensors, path):
        raise kind("No space left on device")

    monkeypatch.setattr(sample_task, "save_file", refused)
    assert run(monkeypatch, tmp_path, "task=sample", "steps=2", "hydra.run.dir=out", *QUICK) == 2
    said = f"odediff: the disk of {tmp_path / 'out'} is full; free space there or choose another folder with"
    assert capsys.readouterr().err.strip() == f"{said} hydra.run.dir=FOLDER"
    assert not list((tmp_path / "out").glob("*samples*"))


def test_a_full_disk_in_a_sweep_is_named_with_the_folder_that_counts_there(monkeypatch, tmp_path, capsys):
    def refused(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sample_task, "save_file", refused)
    assert run(monkeypatch, tmp_path, "-m", "solver=ddim", "steps=2", "hydra.sweep.dir=out", *QUICK) == 1
    assert "choose another folder with hydra.sweep.dir=FOLDER" in capsys.readouterr().err
    (tmp_path / "taken").write_text("")
    assert run(monkeypatch, tmp_path, "-m", "solver=ddim", "steps=2", "hydra.sweep.dir=taken/out", *QUICK) == 2
    assert "choose another folder with hydra.sweep.dir=FOLDER" in capsys.readouterr().err
    (tmp_path / "mine" / "0" / "samples.png").mkdir(parents=True)
    assert run(monkeypatch, tmp_path, "-m", "solver=ddim", "steps=2", "hydra.sweep.dir=mine", *QUICK) == 1
    assert "choose another place with hydra.sweep.dir=FOLDER" in capsys.readouterr().err


def test_a_sweep_whose_table_cannot_be_written_fails_in_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "out" / "sweep.csv").mkdir(parents=True)
    words = ["-m", "solver=ddim", "steps=2", "task.reference_steps=null", *QUICK]
    assert run(monkeypatch, tmp_path, *words, "hydra.sweep.dir=out") == 2
    said = "odediff: out/sweep.csv: a folder has the name of the file to be written; choose another folder with"
    assert capsys.readouterr().err.strip() == f"{said} hydra.sweep.dir=FOLDER"
    assert run(monkeypatch, tmp_path, *words, "hydra.sweep.dir=other", "+hydra.callbacks.sweep.x=stepz") == 2
    assert "hydra.callbacks.sweep.x=stepz is not in the run.json of job 0" in capsys.readouterr().err


def test_the_seconds_of_a_job_are_those_of_its_sampling(monkeypatch, tmp_path):
    right, spent = sample_task.sample, []

    def timed(*arguments, **keywords):
        begun = time.perf_counter()
        solution = right(*arguments, **keywords)
        spent.append(time.perf_counter() - begun)
        return solution

    def slow(model, noise, *settings):
        time.sleep(2)
        return noise

    monkeypatch.setattr(sample_task, "sample", timed)
    monkeypatch.setattr(sample_task, "reference_end", slow)
    assert run(monkeypatch, tmp_path, "-m", "task=sample", "steps=2,3", "hydra.sweep.dir=out", *QUICK) == 0
    jobs = json.loads((tmp_path / "out" / "run.json").read_text())["jobs"]
    assert [job["seconds"] for job in jobs] == pytest.approx(spent, abs=0.5)
