"""Hydra in one place: compose the configuration, check all of it, and hand plain dataclasses on.

Schemas reach Hydra as plain defaults generated from the dataclasses, so that unknown keys fail at compose time; types are checked
by `adapt.core.typed`, all problems at once. User errors of any kind, Hydra's own included, print one line and exit with code 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

import hydra
import omegaconf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adapt.core.errors import AdaptError, ConfigError
from adapt.core.registry import suggest
from adapt.core.runtime import set_up_logging
from adapt.core.typed import defaults_of, from_plain
from adapt.model.routers.contract import all_routers
from pipelines.launch import USER_ERROR_CODE
from pipelines.locations import conf_dir, demo_dir
from pipelines.schema import PipelineConfig
from pipelines.walk import accuracy_table, places, walk


def main(config_name: str, act: Callable[[PipelineConfig, str | None], None] | None = None) -> NoReturn:
    """Compose `conf/<config_name>.yaml` with the command line and walk its stages, or do `act` with it; then exit."""
    set_up_logging()
    # With this set Hydra raises its errors instead of printing several lines and exiting by itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _register()
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(
            lambda config: _act_on(config, act or _walk)
        )()
    except AdaptError as error:
        _leave(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _leave(_first_line(error))
    except KeyboardInterrupt:
        _leave("interrupted; the same command goes on from the last saved state", 130)
    sys.exit(0)


def checked(config: DictConfig) -> PipelineConfig:
    """Turn a composed configuration into dataclasses.

    Raises:
        ConfigError: every missing key and wrong type, by dotted path.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"mandatory keys are missing: {', '.join(missing)}")
    return from_plain(PipelineConfig, OmegaConf.to_container(config, resolve=True), "configuration")


def _act_on(config: DictConfig, act: Callable[[PipelineConfig, str | None], None]) -> None:
    point = None
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        point = re.sub(r"[^\w.,=+-]", "_", HydraConfig.get().job.override_dirname) or "point"
    act(checked(config), point)


def _walk(config: PipelineConfig, point: str | None) -> None:
    done = walk(config, point)
    sys.stdout.write("".join(f"{text}\n" for text in (accuracy_table(done), places(done)) if text))
    sys.stdout.flush()


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=defaults_of(PipelineConfig, omegaconf.MISSING))
    for name in all_routers():
        store.store(group="model/router", name=name, node=defaults_of(all_routers().get(name).config, omegaconf.MISSING))
    if not OmegaConf.has_resolver("demo"):
        OmegaConf.register_new_resolver("demo", lambda path: str(demo_dir() / path))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    key = re.search(r"Key '([^']+)' is not in struct", str(error))
    if key:
        full = re.search(r"full_key: (\S+)", str(error))
        path = full.group(1) if full else key.group(1)
        parent, _, last = path.rpartition(".")
        section = defaults_of(PipelineConfig, None)
        for part in parent.split(".") if parent else []:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        names = list(section) if isinstance(section, dict) else []
        return f"unknown key '{path}'{suggest(last, names)}; see `--cfg job` for all keys"
    available = [line for line in lines[1:] if not line.startswith(("Available", "full_key", "object_type", "Config search"))]
    if "Could not find" in message and "Available options" in str(error):
        available = [line for line in lines[1:] if not line.startswith(("Available", "Config search", "provider"))]
        return f"{message}; there are: {', '.join(available[:30])}"
    return message


def _leave(message: str, code: int = USER_ERROR_CODE) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    sys.exit(code)
