"""The Hydra application: compose a configuration, run its task, and report what is wrong in one line."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path

import hydra
import yaml  # type: ignore[import-untyped]
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odediff.config import Config, SampleTask, conf_folder, register
from odediff.explain import APP, SWEEP, asked_of_the_network, explain, unknown_key
from odediff.explain import App as App
from odediff.files import write_json
from odediff.run import RECORD, AlreadyRecordedError
from odediff.version import __version__
from solvers import SolveError

USER_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, OSError)
"""What a wrong value raises: these, and whatever a network raises, become one line and exit code 2; any other error is
a bug of ours and keeps its traceback."""

ONE_LINE = "ODEDIFF_ONE_LINE"
"""The environment variable that marks HYDRA_FULL_ERROR=1 as set by the application and not by the user."""

SAMPLING = r"[+~]*(solver|line@solver|grid|closing|steps|nfe|rtol|samples)\b.*="
"""Matches a word of a command line that the demonstration has no use for."""

WITH_A_VALUE = ("-c", "--cfg", "-p", "--package", "-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path")
"""Hydra's options that take the next word, if they are not written with an equals sign."""
MOVED = rf"({'|'.join(WITH_A_VALUE)}|-m|--multirun|-h|--help|--hydra-help|-r|--run|--resolve)(=|$)"
"""Matches an option of Hydra's that may be anywhere on a command line."""


def main() -> None:
    """The console script: run, or print one clear line and exit with 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as in 2>&-; a progress bar would fail
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot encode is printed as an escape instead of failing the run.
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
    """The words of a command line with the `MOVED` options first, and with the task if it can be inferred.

    Words that describe a sampling and name no task mean ``task=sample``: the demonstration, which is what an empty
    command line means, has its own solvers and numbers of calls.
    """
    options, rest = _parted(words)
    keys = "|".join(key.name for key in fields(SampleTask))
    named = any(re.match(rf"[+~]*(task(?!\.({keys})\b)|experiment)\b", word) for word in rest)
    named |= any(re.match("--config-name|-cn", word) for word in options)
    sampling = rf"{SAMPLING}|[+~]*task\.({keys})\b"
    first = next((at for at, word in enumerate(rest) if re.match(sampling, word)), None)
    inferred = [] if named or first is None else ["task=sample"]
    at = first or 0
    return [*options, *rest[:at], *inferred, *rest[at:]]


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The `MOVED` options with their values, and the rest: argparse accepts overrides only in one stretch."""
    options: list[str] = []
    rest: list[str] = []
    waits = False
    for word in words:
        (options if waits or re.match(MOVED, word) else rest).append(word)
        waits = not waits and word in WITH_A_VALUE
    return options, rest


def leave_failures_to_us() -> None:
    """Have Hydra raise errors: otherwise it prints them itself, over many lines, and exits with 1.

    Its switch for this is also the user's switch for the whole traceback. A second variable, which the processes of a
    sweep inherit, records that the user did not set it.
    """
    if os.environ.get("HYDRA_FULL_ERROR") != "1":
        os.environ.update({"HYDRA_FULL_ERROR": "1", ONE_LINE: "1"})


def _whole_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and ONE_LINE not in os.environ


def _run(config: DictConfig) -> None:
    # Failures end here and not in main: Hydra adds its own lines to an exception that leaves a job.
    with plain_failures(), noted_failures():
        if OmegaConf.is_missing(config, "task"):
            raise ValueError("~task leaves nothing to do; choose a task by its name, as in task=sample")
        _refuse_unknown(config)
        arguments = OmegaConf.to_container(config.task, resolve=True)
        task = get_method(arguments.pop("_target_"))  # type: ignore[union-attr,arg-type]
        try:
            code = task(config, **arguments)  # type: ignore[arg-type]
        except AlreadyRecordedError:
            # The sweep recognises its own jobs by the time of their records, and tells them apart by their words.
            record = Path(HydraConfig.get().runtime.output_dir) / RECORD
            words = list(HydraConfig.get().overrides.task)
            write_json(record, {**json.loads(record.read_text()), "overrides": words})
            print("  done before", flush=True)
            return
        if code and HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(code)


def _refuse_unknown(config: DictConfig) -> None:
    """Refuse keys that the command line adds, as in +eta=1, and that neither the application nor its task reads."""
    known = {field.name for field in fields(Config)}
    words: list[str] = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # type: ignore[assignment]
    for word in words:
        key = word.lstrip("+").partition("=")[0].rpartition("@")[2]
        name = key.partition(".")[0]
        # The words of a group such as +experiment=NAME, whose members set other keys, leave no key of their own, and
        # one that another word refers to, as in seed=${n}, is a variable.
        referred = any(f"${{{name}}}" in other for other in words)
        if word.startswith("+") and name in config and name not in known and not referred:
            raise ValueError(unknown_key(name, OmegaConf.masked_copy(config, [*(known & set(config))])))
    parameters = inspect.signature(get_method(config.task._target_)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in config.task:
        if name != "_target_" and name not in parameters:
            raise ValueError(unknown_key(f"task.{name}", config))


@contextmanager
def plain_failures(app: App = APP) -> Iterator[None]:
    """Turn a wrong value, a failed solve and Ctrl-C into one line and an exit code: 2, 1 and 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the files that exist are complete", 130))
    except BrokenPipeError:
        # The reader of the output has closed it, as head(1) does; flushing what is still buffered would fail at exit.
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
    """In a sweep, report why a job failed, on the terminal and in its run.json, and let the other jobs go on."""
    try:
        yield
    except Exception as error:
        job = HydraConfig.get()
        if job.mode != RunMode.MULTIRUN:
            raise
        reason = explain(error, SWEEP)
        if _is_plain(error) and not _whole_traceback():
            _say(reason, 1)
        else:
            traceback.print_exc()
        write_json(Path(job.runtime.output_dir) / RECORD, {"overrides": list(job.overrides.task), "failed": reason})


def _is_plain(error: BaseException) -> bool:
    return isinstance(error, (SolveError, *USER_ERRORS)) or asked_of_the_network(error) is not None


def _say(message: str, code: int) -> int:
    print(f"odediff: {message}", file=sys.stderr)
    return code
