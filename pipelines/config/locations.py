"""Where conf/ and the demo data are: beside the packages in a checkout, inside this package once installed."""

from __future__ import annotations

from pathlib import Path

from adapt.core.errors import ConfigError

_HERE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """Return the directory with the configuration files. Raises ConfigError if the installation lacks it."""
    for place in (_HERE / "conf", _HERE.parent / "conf"):
        if (place / "run.yaml").is_file():
            return place
    raise ConfigError(f"{_HERE}: the installation has no conf/; install moe-adapt again")


def demo_dir() -> Path:
    """Return the directory with the demo data."""
    return _HERE / "demo"
