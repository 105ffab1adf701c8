"""Hydra in one place: compose the configuration, check all of it, and hand plain dataclasses on.

Schemas reach Hydra as plain defaults generated from the dataclasses, so that unknown keys fail at compose time; types are checked
by `adapt.core.typed`, all problems at once. User errors of any kind, Hydra's own included, print one line and exit with code 2.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

import hydra
import omegaconf
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from adapt.core.errors import AdaptError, ConfigError, shown
from adapt.core.faults import faults_in_words
from adapt.core.registry import suggest
from adapt.core.runtime import set_up_logging
from adapt.core.store_locks import let_go
from adapt.core.typed import defaults_of, from_plain, to_plain
from adapt.model.config import GPTConfig
from adapt.model.routers.settings import RouterConfig, Top1Config
from adapt.text.rows.writing import STANDARD
from adapt.train.engine_config import EngineConfig
from pipelines.command_line.argument_words import (
    as_typed,
    flags_first,
    in_mapping,
    is_sweep,
    long_form,
    name_of,
    shows_settings,
    with_names,
)
from pipelines.command_line.help import help_of
from pipelines.command_line.points import end_sweep, planned_point, refuse_one_output, run_point, start_sweep
from pipelines.command_line.sweep import taken_record
from pipelines.config.described import GROUPS, mapping_keys, schema, suggest_key, text_keys
from pipelines.config.locations import conf_dir, demo_dir
from pipelines.config.schema import PipelineConfig
from pipelines.ranks.hosts import check_hosts
from pipelines.ranks.joining import company, follow, lead, take_repeated_signals_as_one
from pipelines.ranks.launch import USER_ERROR_CODE, Terminated, terminate
from pipelines.ranks.surroundings import Place, is_first, place_among
from pipelines.walk.sweep_record import PointRecord, SweepRecord

logger = logging.getLogger("pipelines")
_FOREIGN = "hf"
_HELP = ("--help", "-h")
_typed: list[str] = []  # the command as it was typed: its module and words
_EXTRAS = {
    **{name: ("sweeps", name) for name in ("joblib", "submitit_local", "submitit_slurm")},
    "optuna": ("search", "search"),
}  # what an extra brings: its name, and how it is asked for


def main(config_name: str, act: Callable[[PipelineConfig, str | None], None] | None = None) -> NoReturn:
    """Compose `conf/<config_name>.yaml` with the command line and walk its stages, or do `act` with it; then exit.

    Among processes that were started together (see `surroundings`) rank 0 does so; the others run their ranks and leave with it.
    """
    try:
        place = place_among(os.environ)
        if place is None:
            _command(config_name, act, None)
        if place.rank > 0:
            sys.exit(follow(place))
        lead(place, lambda: _command(config_name, act, place))
    except AdaptError as error:
        if not is_first(os.environ):
            sys.exit(USER_ERROR_CODE)
        _leave(str(error))
    finally:
        let_go()
    raise AssertionError("a command leaves by itself")


def _command(config_name: str, act: Callable[[PipelineConfig, str | None], None] | None, place: Place | None) -> NoReturn:
    set_up_logging()
    signal.signal(signal.SIGTERM, terminate)
    if place is not None:
        take_repeated_signals_as_one()
    # With this set Hydra raises its errors instead of printing several lines and exiting by itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _typed[:] = [f"pipelines.{config_name}", *sys.argv[1:]]
    words, sweeps = flags_first(sys.argv[1:]), is_sweep(sys.argv[1:])
    if any(word in _HELP for word in words):
        sys.stdout.write(help_of(config_name, words))
        sys.exit(0)
    words = [long_form(word, config_name, sweeps=sweeps) for word in words]
    words = [in_mapping(word, mapping_keys(), sweeps=sweeps, reads=_is_readable) for word in words]
    sys.argv[1:] = [as_typed(word, text_keys(), sweeps=sweeps, reads=_is_readable) for word in words]
    command, fixed = os.getpid(), _fixed_keys(sys.argv[1:])
    is_composed = False

    def task(config: DictConfig) -> float | None:
        nonlocal is_composed
        is_composed = True
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            _act_on(config, act or _walk)
            return None
        is_elsewhere = os.getpid() != command  # in a process of another launcher's
        if is_elsewhere:
            set_up_logging()
            signal.signal(signal.SIGTERM, terminate)

        def read() -> PipelineConfig:
            found = checked(config)
            if is_elsewhere:
                _check_elsewhere(found, place)
            return found

        point = planned_point(HydraConfig.get().job.num, _varied(HydraConfig.get().overrides.task, fixed), config.run.name)
        return run_point(point, read, act or _walk, is_elsewhere=is_elsewhere)

    try:
        _register()
        with _names_as_typed() if shows_settings(sys.argv[1:]) else nullcontext():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(task)()
        _end_sweep(None)
    except AdaptError as error:
        _leave(str(error))
    except KeyboardInterrupt as stop:
        taken_record()
        code = 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        _leave("interrupted; the same command goes on from the last saved state", code)
    except Exception as error:
        _end_sweep(error)
        if is_composed and not isinstance(error, HydraException | OmegaConfBaseException):
            raise
        _leave(_first_line(error))  # whatever Hydra raises while it composes is about the command line
    sys.exit(0)


@contextmanager
def _names_as_typed() -> Iterator[None]:
    """Write YAML that is printed with names of mappings as they were typed, in quotes where YAML wants some."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        yield
    text = with_names(printed.getvalue(), lambda name: yaml.safe_dump(name, allow_unicode=True, width=sys.maxsize).splitlines()[0])
    sys.stdout.write(text)


class SweepStart(Callback):
    """Called by Hydra where a sweep begins (conf/hydra_settings.yaml)."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Say which points there are, and where they leave how they end; an error ends the command, where Hydra would only warn."""
        sweeper, launcher = config.hydra.sweeper, config.hydra.launcher
        fixed, words = _fixed_keys(sys.argv[1:]), [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items())]
        words += config.hydra.overrides.task
        points: list[PointRecord] = []
        if sweeper._target_.endswith("BasicSweeper"):
            every = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0]
            points = [planned_point(number, _varied(one, fixed), config.run.name) for number, one in enumerate(every)]
        most, n_slots = len(points) or int(sweeper.get("n_trials", 0)), None
        if launcher._target_.endswith("JoblibLauncher"):
            wanted, at_once = int(launcher.n_jobs), len(points) or int(sweeper.get("n_jobs", 1))
            cores = len(os.sched_getaffinity(0))
            n_slots = max(min(wanted if wanted > 0 else cores + 1 + wanted, at_once), 1)
        planned = SweepRecord(
            command=shlex.join(["python", "-m", *_typed]),
            baseline=config.baseline,
            points=points,
            most=most,
            objective=str(config.sweep.objective),
        )
        try:
            if "minimize" in str(sweeper.get("direction", "")):
                raise ConfigError("hydra.sweeper.direction: every sweep.objective is made large; give hydra/sweeper=search")
            refuse_one_output(OmegaConf.to_container(config), _varied(words, fixed), most)
            start_sweep(Path(config.hydra.sweep.dir), planned, n_slots)
        except AdaptError as error:
            _leave(str(error))


def checked(config: DictConfig) -> PipelineConfig:
    """Turn a composed configuration into dataclasses.

    Raises:
        ConfigError: every missing key and wrong type, by dotted path; hosts that are not those of the ranks.
    """
    is_foreign = config.model.kind == _FOREIGN
    unneeded = [f"model.{key}" for key in (defaults_of(GPTConfig, None) if is_foreign else ["path"])]
    missing = sorted(OmegaConf.missing_keys(config).difference(unneeded))
    if missing:
        raise ConfigError(f"mandatory keys are missing: {', '.join(missing)}")
    plain: Any = _with_mappings(OmegaConf.to_container(config, resolve=True))
    others = company()
    if others is not None:
        plain["engine"] = _joined_engine(plain["engine"], others.place)
    found = from_plain(PipelineConfig, {**plain, "model": _chosen_model(plain["model"])}, "configuration")
    check_hosts(found.engine)
    return found


def _with_mappings(plain: Any) -> Any:
    """Read mappings that Hydra's grammar could not, such as `{新闻: 2}`, from what they were handed on as by `in_mapping`."""
    for path, holds_texts in mapping_keys().items():
        *sections, name = path.split(".")
        section = reduce(lambda inner, part: inner[part], sections, plain)
        if isinstance(section[name], str):
            try:
                section[name] = yaml.load(section[name], yaml.BaseLoader if holds_texts else yaml.SafeLoader)
            except yaml.YAMLError as error:
                form = "{name: file}" if holds_texts else "{name: number}"
                raise ConfigError(f"{path}: '{section[name]}' is no mapping; give {form}") from error
        section[name] = _with_names(section[name])
    return plain


def _with_names(value: Any) -> Any:
    """Return a mapping with names as they were typed, where they were handed on as letters; these go over the others."""
    if not isinstance(value, dict):
        return value
    ordered = sorted(value.items(), key=lambda item: name_of(str(item[0])) != item[0])
    return {name_of(name) if isinstance(name, str) else name: _with_names(inner) for name, inner in ordered}


def _joined_engine(engine: dict[str, Any], place: Place) -> dict[str, Any]:
    """Return the engine's settings with the ranks that were started for it.

    Raises:
        ConfigError: others are asked for.
    """
    started = f"{place.starter} has started {place.world_size} processes"
    if engine["hostfile"] is not None:
        raise ConfigError(f"engine.hostfile: {started} for this command, which starts none itself; leave it out")
    is_given = any(override.startswith("engine.world_size=") for override in HydraConfig.get().overrides.task)
    if engine["world_size"] != place.world_size and (is_given or engine["world_size"] != EngineConfig().world_size):
        raise ConfigError(f"engine.world_size: is {engine['world_size']}, and {started}; leave it out, or start as many")
    return {**engine, "world_size": place.world_size}


def _chosen_model(model: dict[str, Any]) -> dict[str, Any]:
    """Keep the keys of the model's own kind.

    Raises:
        ConfigError: a key of the other kind was set.
    """
    sizes = {key: value for key, value in model.items() if key not in ("kind", "path")}
    if model["kind"] != _FOREIGN:
        if model["path"] != omegaconf.MISSING:
            raise ConfigError("model.path: is for a Hugging Face base; add model=hf")
        return sizes
    defaults = {**defaults_of(GPTConfig, omegaconf.MISSING), "router": to_plain(Top1Config())}
    for key, value in sizes.items():
        if value != defaults[key]:
            raise ConfigError(f"model.{key}: is not for model=hf, whose own config.json decides; leave it out")
    return {"path": model["path"]}


def _is_readable(word: str) -> bool:
    """Return whether Hydra's grammar takes a word."""
    try:
        OverridesParser.create().parse_override(word)
    except Exception:  # Hydra's own, or its lexer's
        return False
    return True


def _act_on(config: DictConfig, act: Callable[[PipelineConfig, str | None], None]) -> None:
    try:
        found = checked(config)
        with faults_in_words(Path(found.run.dir)):
            act(found, None)
    except AdaptError as error:
        _leave(str(error))  # here, before Hydra adds lines of its own


def _check_elsewhere(config: PipelineConfig, place: Place | None) -> None:
    """Raise ConfigError for a point that cannot run beside others."""
    if place is not None:
        raise ConfigError(f"hydra/launcher: leave it out; {place.starter} has started this command's processes already")
    if config.force:
        raise ConfigError("force: points side by side share artifacts, which others may be reading; leave hydra/launcher out")


def _end_sweep(error: Exception | None) -> None:
    """End a sweep, and leave where points are not done; a single run has none. A point's own fault is raised by the caller."""
    record = taken_record()
    if record is None or not (record.points and any(point.is_done or point.error for point in record.points)):
        return
    left = end_sweep(record)
    said = None if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
    if left is not None and not any(point.error == said for point in record.points if said is not None):
        _leave(left)


def _fixed_keys(words: Sequence[str]) -> frozenset[str]:
    """Return the keys that a command line gives one value, the last time it gives any; files' own keys are left out."""
    found = {}
    for word in words:
        if not word.startswith("-") and _is_readable(word):
            override = OverridesParser.create().parse_override(word)
            found[override.get_key_element()] = not override.is_sweep_override()
    return frozenset(key for key, is_fixed in found.items() if is_fixed)


def _varied(overrides: Sequence[str], fixed: frozenset[str]) -> list[str]:
    """Return the overrides that a sweep varies."""
    return [word for word in overrides if word.partition("=")[0] not in fixed]


def _walk(config: PipelineConfig, point: str | None) -> None:
    if config.runs and config.stages == ["report"]:
        from pipelines.walk.compared_runs import compare_runs

        sys.stdout.write(f"{compare_runs(config)}\n")
        return
    from pipelines.walk.ends import ends
    from pipelines.walk.order import walk
    from pipelines.walk.tracked_runs import track

    done = walk(config, point, frozenset(_key(word) for word in HydraConfig.get().overrides.task))
    texts = [*ends(done), track(done)]
    stream = sys.stderr if config.output == STANDARD else sys.stdout  # where rows go out, nothing else does
    stream.write("".join(f"{text}\n" for text in texts if text))
    stream.flush()


def _key(word: str) -> str:
    return with_names(word.lstrip("+").partition("=")[0], str)


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=schema(omegaconf.MISSING))
    for name, settings in RouterConfig.choices().items():
        store.store(group="model/router", name=name, node=defaults_of(settings, omegaconf.MISSING))
    if not OmegaConf.has_resolver("demo"):
        OmegaConf.register_new_resolver("demo", lambda path: str(demo_dir() / path))


def _first_line(error: Exception) -> str:
    """Say in one line what Hydra says in several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    refused = re.match(r"Could not override '([^']+)'", message)
    if isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError) and (refused or error.__cause__.full_key):
        return _unknown_key(max(refused.group(1) if refused else "", str(error.__cause__.full_key or ""), key=len))
    if refused and error.__cause__ is not None:
        return f"{message} {str(error.__cause__).splitlines()[0]}"
    missing = re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", message)
    if missing and missing.group(2) in _EXTRAS:
        extra, chosen = _EXTRAS[missing.group(2)]
        return f"hydra/{missing.group(1)}={chosen}: is not installed; run `pip install 'moe-adapt[{extra}]'`"
    if "Could not find" in message:
        options = [line for line in lines[1:] if not line.startswith(("Available", "Config search", "provider"))]
        return f"{message}; there are: {', '.join(options)}"
    return message


def _unknown_key(path: str) -> str:
    if "/" in path:
        return f"unknown group '{path}'{suggest(path, list(GROUPS))}; there are: {', '.join(GROUPS)}"
    return f"unknown key '{path}'{suggest_key(path)}; `--help` lists the keys, `--cfg job` their values"


def _leave(message: str, code: int = USER_ERROR_CODE) -> NoReturn:
    try:
        sys.stderr.write(f"error: {shown(message)}\n")
        sys.stderr.flush()
    except OSError:  # a log on a disk that is full: the code says it still, if nothing is left to be written on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(code)
