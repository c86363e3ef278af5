"""The Hydra application: compose a configuration, run its task, and say what is wrong in one line."""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import hydra
import yaml  # type: ignore[import-untyped]
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from odediff.config import SampleTask, conf_folder, register
from odediff.files import write_json
from odediff.model import Model
from odediff.run import RECORD, AlreadyRecordedError
from odediff.version import __version__
from solvers import SolveError

USER_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, OSError)
"""What a wrong value raises: these, and whatever a network raises, become one line and exit code 2; anything else is a
fault of ours and keeps its traceback."""


class App(NamedTuple):
    """What messages need to know of an application: its primary configuration, and the key of its output folder."""

    config_name: str
    folder_key: str


ONE_LINE = "ODEDIFF_ONE_LINE"
"""The environment variable that is set where HYDRA_FULL_ERROR=1 is no wish of the user."""
OWN = {"odediff", "solvers", "benchmarks", "__main__"}
"""Modules whose places tell a user nothing."""

SAMPLING = r"[+~]*(solver|line@solver|grid|closing|steps|nfe|rtol|samples)\b.*="
"""Words of a command line that the demonstration has no use for."""

MOVED = r"(-m|--multirun|-cd|--config-dir)(=|$)"
"""Hydra's options that may stand anywhere on a command line."""
WITH_A_VALUE = {"-cd", "--config-dir"}
"""Those of them that take the next word, where they are not written with an equals sign."""

APP = App("config", "hydra.run.dir")


def main() -> None:
    """The console script: run, or print one clear line and exit with 2."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without a letter of some path shows its code, and the run does not fail by it.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "--version" in sys.argv[1:]:
        with plain_failures():
            print(f"odediff {__version__}", flush=True)
        return
    leave_failures_to_us()
    sys.argv[1:] = completed(sys.argv[1:])
    register()
    with plain_failures():
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=APP.config_name)(_run)()


def completed(words: Sequence[str]) -> list[str]:
    """The words of a command line, whose `MOVED` ones come first, with the task that they leave to be guessed.

    Those that describe a sampling and name no task mean ``task=sample``: the demonstration, which is what no words at
    all mean, has solvers and numbers of calls of its own.
    """
    words = _options_first(words)
    keys = "|".join(key.name for key in fields(SampleTask))
    other = rf"[+~]*(task(?!\.({keys})\b)|experiment)\b|--config-name|-cn"
    named = any(re.match(other, word) for word in words)
    sampling = rf"{SAMPLING}|[+~]*task\.({keys})\b"
    first = next((at for at, word in enumerate(words) if re.match(sampling, word)), None)
    return words if named or first is None else [*words[:first], "task=sample", *words[first:]]


def _options_first(words: Sequence[str]) -> list[str]:
    """What may stand anywhere, with its values, then the rest: argparse knows overrides in one stretch only."""
    options: list[str] = []
    rest: list[str] = []
    waits = False
    for word in words:
        (options if waits or re.match(MOVED, word) else rest).append(word)
        waits = not waits and word in WITH_A_VALUE
    return [*options, *rest]


def leave_failures_to_us() -> None:
    """Have Hydra raise what fails: otherwise it prints it itself, over many lines, and exits with 1.

    Its switch for that is also the user's for the whole traceback. A second variable, which the processes of a sweep
    inherit, says that it was not the user who set it.
    """
    if os.environ.get("HYDRA_FULL_ERROR") != "1":
        os.environ.update({"HYDRA_FULL_ERROR": "1", ONE_LINE: "1"})


def _whole_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and ONE_LINE not in os.environ


def _run(config: DictConfig) -> None:
    # Failures end here and not in main: Hydra adds lines of its own to an exception that leaves a job.
    with plain_failures(), noted_failures():
        if OmegaConf.is_missing(config, "task"):
            raise ValueError("~task leaves nothing to do; choose a task by its name, as in task=sample")
        arguments = OmegaConf.to_container(config.task, resolve=True)
        task = get_method(arguments.pop("_target_"))  # type: ignore[union-attr,arg-type]
        try:
            code = task(config, **arguments)  # type: ignore[arg-type]
        except AlreadyRecordedError:
            # The sweep tells its own jobs from what was there by the time of their records, and them apart by words.
            record = Path(HydraConfig.get().runtime.output_dir) / RECORD
            words = list(HydraConfig.get().overrides.task)
            write_json(record, {**json.loads(record.read_text()), "overrides": words})
            print("  done before", flush=True)
            return
        if code and HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(code)


@contextmanager
def plain_failures(app: App = APP) -> Iterator[None]:
    """Turn a wrong value, a failed solve and Ctrl-C into one line and an exit code: 2, 1 and 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the files that are there are whole", 130))
    except BrokenPipeError:
        # Whoever read the output has seen enough, as head(1) does; what is still buffered would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except Exception as error:
        if not _is_plain(error):
            raise
        if _whole_traceback():
            traceback.print_exc()
        sys.exit(_say(str(error), 1) if isinstance(error, SolveError) else _say(explain(error, app), 2))


@contextmanager
def noted_failures() -> Iterator[None]:
    """In a sweep, say why a job failed, there and in its run.json, and let the others go on."""
    try:
        yield
    except Exception as error:
        job = HydraConfig.get()
        if job.mode != RunMode.MULTIRUN:
            raise
        reason = explain(error)
        if _is_plain(error) and not _whole_traceback():
            _say(reason, 1)
        else:
            traceback.print_exc()
        write_json(Path(job.runtime.output_dir) / RECORD, {"overrides": list(job.overrides.task), "failed": reason})


def _is_plain(error: BaseException) -> bool:
    return isinstance(error, (SolveError, *USER_ERRORS)) or _asked_of_the_network(error) is not None


def explain(error: BaseException, app: App = APP) -> str:
    """One line for the error of a wrong value, with the valid names where there are some, and where code is at fault.

    The place is the innermost in code of the user's own, if that has a part in it.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f"the disk of {Path(error.filename).parent}" if error.filename else "a disk"
        return f"{where} is full; free space there or choose another folder with {app.folder_key}=FOLDER"
    place = next(filter(None, map(_own_place, _chain(error))), None)
    return _reason(error, app) + (f" ({place}; HYDRA_FULL_ERROR=1 shows the whole traceback)" if place else "")


def _own_place(error: BaseException) -> str | None:
    """The innermost place, ``file.py:line``, of code that is neither ours nor installed."""
    installed = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib"))
    places = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(("<", *installed))
        and frame.f_globals.get("__name__", "").partition(".")[0] not in OWN
    ]
    return places[-1] if places else None


def _asked_of_the_network(error: BaseException) -> str | None:
    """How the network was called, if that is where the error comes from."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)][:-1]):
        if frame.f_code is Model._pass.__code__:
            (x, times), words = frame.f_locals["arguments"], frame.f_locals["keywords"]
            shapes = ", ".join(f"{name} {_shape(value)}" for name, value in {"x": x, "time": times, **words}.items())
            return f"the network was called with {shapes}"
    return None


def _shape(value: object) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def _reason(error: BaseException, app: App) -> str:
    asked = None if isinstance(error, ValueError) else _asked_of_the_network(error)
    if asked:
        return f"{type(error).__name__}: {_line(error)}; {asked}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; choose another folder with {app.folder_key}=FOLDER"
    causes = list(_chain(error))
    if "Config group override must be a string" in str(causes[0]):
        word = next((word for word in sys.argv[1:] if "=" in word and "null" in word), "GROUP=null")
        return f"{word}: a group takes one of its names; leave it out, or take it away with ~{word.partition('=')[0]}"
    line = next((word for word in sys.argv[1:] if re.match(r"\+?line=", word)), None)
    if line and re.search(r"override 'line'|Key 'line' not in", str(causes[0])):
        name = line.partition("=")[2]
        return f"{line}: a line is a part of a solver; give both, as in solver=rk4 line@solver.line={name}"
    configuration = [c for c in causes if isinstance(c, HydraException | OmegaConfBaseException)]
    if isinstance(causes[0], InstantiationException) and len(causes) > 1 and "Error in call" in str(causes[0]):
        # The target itself refused its arguments: its own message is the clear one.
        where = re.search(r"full_key: (\S+)", str(causes[0]))
        return f"{where.group(1)}: {_line(causes[1])}" if where else _line(causes[1])
    if not isinstance(causes[0], HydraException | OmegaConfBaseException):
        return _line(causes[0])
    # OmegaConf chains each message to its own unfilled template.
    text = ": ".join(dict.fromkeys(line for line in map(_line, configuration) if not re.search(r"\$[A-Z]", line)))
    if "Could not override 'line@solver.line'" in text:
        return "line@solver.line: this solver leaves no choice of a line; take one that does, such as solver=rk4"
    # Given a mapping, Hydra names the key that it was given to, and OmegaConf the one within that does not exist.
    unknown = re.search(r"full_key: (\S+)", str(configuration[-1])) if "Could not override" in text else None
    if unknown:
        return _unknown_key(unknown.group(1), app)
    no_list = re.search(r"override (\S+?)=(\S*): Invalid value assigned: \w+ is not a ListConfig", text)
    if no_list:
        key, value = no_list.groups()
        return f"{key}={value}: {key} takes a list, as in {key}=[{value}]"
    if isinstance(causes[0], InstantiationException):
        where = re.search(r"full_key: (\S+)", str(causes[0]))
        text = ": ".join((*(where.groups() if where else ()), text, *(map(_line, causes[-1:]) if causes[1:] else ())))
    return text


def _line(error: BaseException) -> str:
    """The message on one line, without Hydra's inventories of where it searched and what it was doing."""
    text = re.split(r"\s+(?:Config search path|full_key|See https|object_type)\b", str(error))[0]
    text = text.replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", "")
    return " ".join(text.split()) or type(error).__name__


def _unknown_key(key: str, app: App) -> str:
    parent, _, name = key.rpartition(".")
    valid = _keys_below(parent, app)
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    where = f" of {parent}" if parent else ""
    listed = f" (the keys{where}: {', '.join(valid)})" if valid else ""
    return f"{key} is no key of the configuration{hint}{listed}; +{key}=... would add it"


def _keys_below(parent: str, app: App) -> list[str]:
    """The keys of the configuration at ``parent``, with the groups that the command line chose."""
    chosen = [
        word for word in sys.argv[1:] if re.fullmatch(r"(\+experiment|model|solver|grid|schedule|task)=\w+", word)
    ]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = hydra.compose(app.config_name, overrides=chosen)
        node = OmegaConf.select(config, parent) if parent else config
        return [str(name) for name in node if not str(name).startswith("_")]
    except (HydraException, OmegaConfBaseException, TypeError):
        return []


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _say(message: str, code: int) -> int:
    print(f"odediff: {message}", file=sys.stderr)
    return code
