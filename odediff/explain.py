"""What is wrong with a command line, in one line: translations of what Hydra, OmegaConf and the network raise."""

from __future__ import annotations

import difflib
import errno
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from odediff.config import CHOSEN_BY, TASKS, conf_folder
from odediff.model import Model
from odediff.run import OWN_KEYS


class App(NamedTuple):
    """What messages need to know about an application: its primary configuration, and the key of its output folder."""

    config_name: str
    folder_key: str


APP = App("config", "hydra.run.dir")
"""The application of this package."""

SWEEP = APP._replace(folder_key="hydra.sweep.dir")
"""The same in a sweep, where hydra.run.dir has no effect."""

OURS = {"odediff", "solvers", "benchmarks", "__main__"}
"""Top-level modules that are never named as the place of an error."""

PASSED = {"config", "device", "path", "steps"}
"""Arguments that the application passes to the targets of a configuration by itself."""

FULL_KEY = r"full_key: (\S+)"
"""Matches the key that a message of Hydra or OmegaConf is about."""


def explain(error: BaseException, app: App = APP) -> str:
    """One line for the error of a wrong value, with the valid names where there are some, and the place in user code.

    The place is the innermost one in the user's own code, if the error passed through any.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f"the disk of {Path(error.filename).parent}" if error.filename else "a disk"
        return f"{where} is full; free space there or choose another folder with {app.folder_key}=FOLDER"
    causes = list(_chain(error))
    place = next(filter(None, map(_own_place, causes)), None)
    reason = next(filter(None, (translate(causes, app) for translate in TRANSLATORS)), _text(causes))
    return reason + (f" ({place}; HYDRA_FULL_ERROR=1 shows the whole traceback)" if place else "")


def unknown_key(key: str, config: DictConfig | None) -> str:
    """The message for a key that ``config`` does not have, with what may have been meant."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if config is not None and parent else config
    present = [str(one) for one in node] if isinstance(node, DictConfig) else []
    valid = [one for one in present if not one.startswith("_") and one != name]
    settings = _settings(node) if parent else valid
    if parent and settings is not None and name not in settings:
        return _no_such_setting(key, node._target_, settings)  # type: ignore[union-attr]
    elsewhere = None if parent else _elsewhere(name, config)
    meant = [elsewhere] if elsewhere else difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {meant[0]}?" if meant else ""
    listed = f" (the keys{f' of {parent}' if parent else ''}: {', '.join(valid)})" if valid else ""
    return f"{key} is not a key of the configuration{hint}{listed}" + (f"; +{key}=... would add it" if parent else "")


def asked_of_the_network(error: BaseException) -> str | None:
    """How the network was called, if the error comes from there."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)][:-1]):
        if frame.f_code is Model._pass.__code__:
            (x, times), words = frame.f_locals["arguments"], frame.f_locals["keywords"]
            shapes = ", ".join(f"{name} {_shape(value)}" for name, value in {"x": x, "time": times, **words}.items())
            return f"the network was called with {shapes}"
    return None


def _network_error(causes: Sequence[BaseException], app: App) -> str | None:
    asked = None if isinstance(causes[0], ValueError) else asked_of_the_network(causes[0])
    return f"{type(causes[0]).__name__}: {_line(causes[0])}; {asked}" if asked else None


def _unusable_file(causes: Sequence[BaseException], app: App) -> str | None:
    error = causes[0]
    if not isinstance(error, OSError) or not error.filename:
        return None
    return f"{error.filename}: {error.strerror}; choose another folder with {app.folder_key}=FOLDER"


def _null_group(causes: Sequence[BaseException], app: App) -> str | None:
    if "Config group override must be a string" not in str(causes[0]):
        return None
    word = next((word for word in sys.argv[1:] if "=" in word and "null" in word), "GROUP=null")
    group = word.partition("=")[0]
    remedy = f", or remove it with ~{group}" if group in ("grid", "schedule") else ""
    return f"{word}: a group takes one of its names; leave it out{remedy}"


def _line_without_solver(causes: Sequence[BaseException], app: App) -> str | None:
    word = next((word for word in sys.argv[1:] if re.match(r"\+?line=", word)), None)
    if not word or not re.search(r"override 'line'|Key 'line' not in", str(causes[0])):
        return None
    name = word.partition("=")[2]
    return f"{word}: a line belongs to a solver; give both, as in solver=rk4 line@solver.line={name}"


def _unreadable_word(causes: Sequence[BaseException], app: App) -> str | None:
    """A word that is no KEY=VALUE in Hydra's grammar, such as steps 20, [1,2 or a folder named ü."""
    if not isinstance(causes[0], OverrideParseException):
        return None
    word = causes[0].override
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: give KEY=VALUE, as in steps=20; --help lists the keys"
    quotes = "" if re.search("[\"']", value) else f""", or quote the value within the word, as in '{key}="{value}"'"""
    reason = [_line(cause) for cause in causes if isinstance(cause, HydraException)][-1]
    return f"{word} cannot be read ({reason}); close its brackets{quotes}"


def _sweep_without_m(causes: Sequence[BaseException], app: App) -> str | None:
    """Several values, and no sweep."""
    found = re.search(r"Ambiguous value for argument '(.+?)'", str(causes[0]))
    return f"{found[1]}: add -m to sweep over these values" if found else None


def _unknown_choice(causes: Sequence[BaseException], app: App) -> str | None:
    """A name that its group does not have, such as solver=heum."""
    found = re.search(r"In '(\S+)': Could not find '(\S+)/(\S+?)'\s+Available options in \S+:\s+(.*)", _line(causes[0]))
    if not found:
        return None
    origin, group, name, names = found.groups()
    valid = names.split()
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    where = "" if any(re.search(rf"[=,]{name}\b", word) for word in sys.argv[1:]) else f"{origin}: "
    return f"{where}{CHOSEN_BY.get(group, group)}={name} is unknown{hint} (one of: {', '.join(valid)})"


def _unknown_argument(causes: Sequence[BaseException], app: App) -> str | None:
    """A setting that its target does not take, such as +solver.order=3 with DDIM."""
    called = re.search(r"Error in call to target '([\w.]+)'", str(causes[0]))
    refused = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(causes[-1]))
    if not called or not refused or called.group(1).rpartition(".")[2] != refused.group(1):
        return None
    where, name = re.search(FULL_KEY, str(causes[0])), refused.group(2)
    given = (re.match(rf"[+]*((?:[\w.]+\.)?{name})(?=[.=])", word) for word in sys.argv[1:])
    key = f"{where.group(1)}.{name}" if where else next((one[1] for one in given if one), name)
    target = OmegaConf.create({"_target_": called.group(1)})
    config = _composed(app)
    node = OmegaConf.select(config, key.rpartition(".")[0]) if config is not None and "." in key else None
    composed = isinstance(node, DictConfig) and node.get("_target_") == called.group(1)
    return _no_such_setting(key, called.group(1), _settings(node if composed else target) or [])


def _refused_arguments(causes: Sequence[BaseException], app: App) -> str | None:
    """What a target says about its arguments is clearer than what Hydra adds."""
    if not isinstance(causes[0], InstantiationException) or len(causes) < 2 or "Error in call" not in str(causes[0]):
        return None
    where = re.search(FULL_KEY, str(causes[0]))
    return f"{where.group(1)}: {_line(causes[1])}" if where else _line(causes[1])


def _plain_message(causes: Sequence[BaseException], app: App) -> str | None:
    return None if isinstance(causes[0], HydraException | OmegaConfBaseException) else _line(causes[0])


def _solver_without_line(causes: Sequence[BaseException], app: App) -> str | None:
    if "Could not override 'line@solver.line'" not in _text(causes):
        return None
    return "line@solver.line: this solver leaves no choice of a line; take one that does, such as solver=rk4"


def _absent_key(causes: Sequence[BaseException], app: App) -> str | None:
    # Given a mapping, Hydra names the key that it was given to, and OmegaConf the one within that does not exist.
    last = [cause for cause in causes if isinstance(cause, HydraException | OmegaConfBaseException)][-1]
    key = re.search(FULL_KEY, str(last)) if "Could not override" in _text(causes) else None
    return unknown_key(key.group(1), _composed(app)) if key else None


def _not_a_list(causes: Sequence[BaseException], app: App) -> str | None:
    found = re.search(r"override (\S+?)=(\S*): Invalid value assigned: \w+ is not a ListConfig", _text(causes))
    return "{0}={1}: {0} takes a list, as in {0}=[{1}]".format(*found.groups()) if found else None


def _not_instantiated(causes: Sequence[BaseException], app: App) -> str | None:
    if not isinstance(causes[0], InstantiationException):
        return None
    where = re.search(FULL_KEY, str(causes[0]))
    return ": ".join((*(where.groups() if where else ()), _text(causes), *map(_line, causes[1:][-1:])))


TRANSLATORS: tuple[Callable[[Sequence[BaseException], App], str | None], ...] = (
    _network_error,
    _unusable_file,
    _null_group,
    _line_without_solver,
    _unreadable_word,
    _sweep_without_m,
    _unknown_choice,
    _unknown_argument,
    _refused_arguments,
    _plain_message,
    _solver_without_line,
    _absent_key,
    _not_a_list,
    _not_instantiated,
)
"""Functions of an error with its causes, each of which returns a message or None; the first message is given."""


def _text(causes: Sequence[BaseException]) -> str:
    """The messages of Hydra and OmegaConf, without the unfilled template that OmegaConf chains to each of its own."""
    lines = (_line(cause) for cause in causes if isinstance(cause, HydraException | OmegaConfBaseException))
    return ": ".join(dict.fromkeys(line for line in lines if not re.search(r"\$[A-Z]", line)))


def _line(error: BaseException) -> str:
    """The message on one line, without Hydra's lists of where it searched and what it was doing."""
    text = re.split(r"\s+(?:Config search path|full_key|See https|object_type)\b", str(error))[0]
    text = text.replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", "")
    return " ".join(text.split()) or type(error).__name__


def _no_such_setting(key: str, target: str, settings: Sequence[str]) -> str:
    name = target.rpartition(".")[2]
    close = difflib.get_close_matches(key.rpartition(".")[2], settings, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    listed = f"its settings: {', '.join(settings)}" if settings else "it has none"
    return f"{key}: {name if name[0].isupper() else target} has no such setting{hint} ({listed})"


def _settings(node: Any) -> list[str] | None:
    """The settings of what ``node`` describes; None if it describes nothing that can be made, or takes any."""
    try:
        parameters = inspect.signature(get_object(node._target_)).parameters.values()
    except Exception:  # whatever a module of the user's own raises on import
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    taken = [parameter.name for parameter in parameters if parameter.name not in PASSED]
    # A key that must still be given, model.shape, is not "in" a configuration, but among its keys.
    return list(dict.fromkeys((*(key for key in OWN_KEYS if key in node.keys()), *taken)))  # noqa: SIM118


def _elsewhere(name: str, config: DictConfig | None) -> str | None:
    """Where a key that the top level does not have is: in what is configured, or among the other choices."""
    groups = [group for group in ("solver", "task", "model") if config is not None and group in config]
    if config is not None and name in (OmegaConf.select(config, "model.condition") or ()):
        return f"model.condition.{name}"
    for group in groups:
        if name in (_settings(config[group]) or ()):  # type: ignore[index]
            return f"{group}.{name}"
    for group in groups:
        for choice, keys in _choices(group).items():
            if name in keys:
                return f"{group}.{name} of {group}={choice}"
    return None


def _choices(group: str) -> dict[str, list[str]]:
    """The keys of every member of a group, by its name."""
    if group == "task":
        return {name: [one.name for one in fields(schema)] for name, schema in TASKS.items()}
    files = sorted((conf_folder() / group).glob("*.yaml"))
    return {file.stem: [str(key) for key in OmegaConf.load(file)] for file in files}


def _composed(app: App) -> DictConfig | None:
    """The configuration with the groups that the command line chose; None if it cannot be composed."""
    choice = r"(\+experiment|(?:model|solver|grid|schedule|task)(?:\._target_)?)=[\w.]+"
    chosen = [word for word in sys.argv[1:] if re.fullmatch(choice, word)]
    folders = re.findall(r"(?:^|\0)(?:-cd|--config-dir)[=\0]([^\0]+)", "\0".join(sys.argv[1:]))
    chosen += [f"hydra.searchpath=[{','.join(f'file://{Path(one).absolute()}' for one in folders)}]"] if folders else []
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return hydra.compose(app.config_name, overrides=chosen)
    except (HydraException, OmegaConfBaseException, TypeError):
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _own_place(error: BaseException) -> str | None:
    """The innermost place, ``file.py:line``, in code that is neither ours nor installed."""
    installed = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib"))
    places = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(("<", *installed))
        and frame.f_globals.get("__name__", "").partition(".")[0] not in OURS
    ]
    return places[-1] if places else None


def _shape(value: object) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
