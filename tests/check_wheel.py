"""Build the wheel as a release would, and use it as a stranger would: in a clean environment, from another folder.

Run by `make wheel`. The wheel is built from the sdist, so a file that the sdist forgets is missing here too.
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"odediff", "solvers"}

LIBRARY = """
import importlib.util, sys, torch, odediff, solvers
assert odediff.__file__.startswith(sys.prefix) and solvers.__file__.startswith(sys.prefix), "not the installed packages"
assert importlib.util.find_spec("torchvision") is None, "a dependency pulls torchvision"
images = odediff.sample(odediff.zoo.fashion_mnist(), (2, 1, 28, 28), steps=5, seed=0)
assert images.shape == (2, 1, 28, 28) and images.isfinite().all(), images
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="odediff-wheel-") as folder:
        wheel = build(Path(folder, "dist"))
        check_contents(wheel)
        python = install(wheel, Path(folder, "env"))
        elsewhere = Path(folder, "elsewhere")
        elsewhere.mkdir()
        check_use(python, elsewhere)
    print(f"{wheel.name}: contents, installation, library and command line are right")


def build(dist: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT)
    (wheel,) = dist.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names}
    (metadata,) = {name for name in top if name.endswith(".dist-info")}
    require(top - {metadata} == PACKAGES, f"top-level names are {sorted(top)}, not {sorted(PACKAGES)} and {metadata}")
    missing = shipped() - names
    require(not missing, f"the wheel lacks {sorted(missing)}")


def shipped() -> set[str]:
    """Paths in the wheel of every module, every weight file and every file of the Hydra tree."""
    code = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    weights = set((ROOT / "odediff/zoo/weights").glob("*"))
    require(bool(weights), "odediff/zoo/weights is empty")
    tree = {"odediff" / path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    return {path.as_posix() for path in tree} | {path.relative_to(ROOT).as_posix() for path in code | weights}


def install(wheel: Path, env: Path) -> Path:
    venv.create(env, with_pip=True)
    python = env / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt", wheel)
    run(*pip, "check")
    return python


def check_use(python: Path, folder: Path) -> None:
    run(python, "-c", LIBRARY, cwd=folder)
    command = (python.with_name("odediff"), "task=sample", "solver=ddim", "steps=5", "seed=0", "hydra.run.dir=out")
    run(*command, cwd=folder)
    run(
        python.with_name("odediff"),
        "+experiment=joint_vs_marginal",
        "samples=99",
        "steps=9",
        "hydra.run.dir=joint",
        cwd=folder,
    )
    pictures = [path for path in (folder / "out").rglob("*.png") if path.stat().st_size > 0]
    require(bool(pictures), f"{command[0].name} task=sample wrote no picture: {sorted((folder / 'out').rglob('*'))}")


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command that must succeed and that sees neither the checkout nor this interpreter's paths."""
    print("+", *command, flush=True)
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    status = subprocess.run(command, cwd=cwd, env=clean, check=False).returncode
    require(status == 0, f"exit code {status}")


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        sys.exit(f"check_wheel: {otherwise}")


if __name__ == "__main__":
    main()
