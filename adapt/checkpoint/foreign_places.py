"""What people give as a Hugging Face model that is none yet: names on the hub, caches, adapters, GGUF files, pickled weights.

Each gets one sentence with the command that makes a directory that works. Nothing is fetched or converted here.
"""

from __future__ import annotations

import re
from pathlib import Path

from adapt.checkpoint.hf_directory import ADAPTER_CONFIG_FILE, CONFIG_FILE, PICKLES, SNAPSHOTS, is_delta
from adapt.core.errors import AdaptError
from adapt.core.json_files import read_object
from adapt.text.hf_commands import command_to_merge

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_CACHED = "models--"
_GGUF = ".gguf"
_SHARDS = "*.safetensors"


def mend_of(path: Path, key: str) -> str | None:
    """Return what turns a place into a directory that a key takes, in a sentence; None where nothing is recognised."""
    if path.is_file():
        return _mend_of_file(path, key)
    if not path.exists():
        return _mend_of_name(path, key)
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        return _mend_of_directory(path, key)
    return None


def _mend_of_file(path: Path, key: str) -> str:
    if path.suffix == _GGUF:
        return f"is no directory but a file, in GGUF; {_from_gguf(path, key)}"
    return f"is no directory but a file; give {key}= a model's directory, such as {path.parent}"


def _mend_of_name(path: Path, key: str) -> str | None:
    name = str(path)
    if path.is_absolute() or not _HUB_NAME.fullmatch(name) or path.parent.exists():
        return None
    fetched = f"`hf download {name} --local-dir {path.name}`"
    return f"is no directory; if it is a model on the Hugging Face hub, {fetched} fetches it, to be given as {key}={path.name}"


def _mend_of_directory(path: Path, key: str) -> str | None:
    snapshots = sorted((path / SNAPSHOTS).glob(f"*/{CONFIG_FILE}"), key=lambda file: file.stat().st_mtime)
    if snapshots:
        return f"is a model in the Hugging Face cache; give the snapshot in it: {key}={snapshots[-1].parent}"
    cached = sorted(place.name for place in path.glob(f"{_CACHED}*") if place.is_dir())
    if cached:
        names = ", ".join(name.removeprefix(_CACHED).replace("--", "/") for name in cached[:5])
        return f"is a Hugging Face cache with {names}; give one model's snapshot: {key}={path}/{cached[0]}/{SNAPSHOTS}/..."
    if (path / ADAPTER_CONFIG_FILE).is_file() and not is_delta(path):
        return f"is a PEFT adapter over {_base_of(path)}, and no model by itself; {command_to_merge(path)}"
    files = sorted(file.name for file in path.glob(f"*{_GGUF}"))
    if files:
        return f"holds a GGUF file; {_from_gguf(path / files[0], key)}"
    if any(path.glob(_SHARDS)) or any(file for pattern in PICKLES for file in path.glob(pattern)):
        return f"has weights, but no {CONFIG_FILE}; fetch that file from where they came"
    return None


def _from_gguf(file: Path, key: str) -> str:
    return f"`python -m pipelines.import_gguf source={file} output=DIR` makes a Hugging Face directory for {key}=DIR"


def _base_of(path: Path) -> str:
    try:
        return str(read_object(path / ADAPTER_CONFIG_FILE).get("base_model_name_or_path") or "another base")
    except AdaptError:
        return "another base"
