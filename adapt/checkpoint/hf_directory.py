"""Hugging Face directories as files: what belongs to a checkpoint, whether it is whole, and what it is called by content.

A directory is one if its `config.json` names a `model_type`, but for this project's own models in that form, which have their own
settings in a section there (`own_form.py`). Only safetensors are read. Nothing here needs transformers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adapt.checkpoint.file_sums import check_files, refuse_elsewhere, refuse_links_out
from adapt.core.artifacts import Artifact, sha256_of_file
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object
from adapt.core.progress import progress
from adapt.text.hf_commands import command_from_pickles
from adapt.text.hf_tokenizer import TOKENIZER_FILES

CONFIG_FILE = "config.json"
CONFIG_FILES = (CONFIG_FILE, "generation_config.json")
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# A delta holds what an adaptation changed (PEFT's two files, or tensors), its base's configuration, and which base that is.
DELTA_FILE = "delta.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
CHANGED_FILE = "changed_tensors.safetensors"
STAGE = "hugging_face"
SNAPSHOTS = "snapshots"  # in Hugging Face's cache: a directory for each state of a model, of links to its blobs
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
OWN_SECTION = "moe_adapt"


def is_hf_directory(directory: Path) -> bool:
    """Whether `config.json` is there, readable, and names the `model_type` of a model that is not this project's own."""
    try:
        content = read_object(directory / CONFIG_FILE)
    except CheckpointError:
        return False
    return "model_type" in content and OWN_SECTION not in content


def is_own_form(directory: Path) -> bool:
    """Whether a directory holds a model of this project in the form of a Hugging Face directory."""
    try:
        return OWN_SECTION in read_object(directory / CONFIG_FILE)
    except CheckpointError:
        return False


def is_delta(directory: Path) -> bool:
    """Whether a directory holds only what an adaptation changed of a base."""
    return (directory / DELTA_FILE).is_file()


def shards_of(directory: Path) -> list[Path]:
    """Return the files that hold the weights; of a delta, the changes.

    Raises:
        CheckpointError: there are none, only pickles, or the index is damaged.
    """
    if is_delta(directory):
        return [file for file in (directory / ADAPTER_FILE, directory / CHANGED_FILE) if file.is_file()]
    refuse_two_sets(directory)
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    index = directory / INDEX_FILE
    if not index.is_file():
        if any(file for pattern in PICKLES for file in directory.glob(pattern)):
            raise CheckpointError(
                f"{directory}: holds pickled weights only, which are never loaded here (safetensors are); "
                f"{command_from_pickles(directory)}"
            )
        raise CheckpointError(f"{directory}: has a config.json, but neither {SINGLE_FILE} nor {INDEX_FILE}")
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map of tensor names to shards")
    names = sorted(set(weight_map.values()))
    for name in names:
        refuse_elsewhere(index, name)
    return [directory / name for name in names]


def refuse_two_sets(directory: Path) -> None:
    """Raise CheckpointError where a directory holds two sets of weights: one would be ignored silently."""
    if (directory / SINGLE_FILE).is_file() and (directory / INDEX_FILE).is_file():
        raise CheckpointError(
            f"{directory}: holds two sets of weights ({SINGLE_FILE}, and those of {INDEX_FILE}); keep one of them"
        )


def checkpoint_files_of(directory: Path) -> list[Path]:
    """Return every file of a Hugging Face checkpoint: configuration, weights with their index, tokenizer."""
    others = [directory / name for name in (*CONFIG_FILES, *TOKENIZER_FILES, DELTA_FILE, ADAPTER_CONFIG_FILE)]
    has_index = not is_delta(directory) and not (directory / SINGLE_FILE).is_file()
    index = [directory / INDEX_FILE] if has_index else []
    return [*(file for file in others if file.is_file()), *index, *shards_of(directory)]


def config_files_of(directory: Path) -> dict[str, bytes]:
    """Return the configuration files' bytes by name."""
    return {name: (directory / name).read_bytes() for name in CONFIG_FILES if (directory / name).is_file()}


def check_shards(directory: Path) -> int:
    """Check that every shard is there and as long as its header says, and that files are as the index records them.

    Returns how many numbers the shards hold. Raises CheckpointError.
    """
    refuse_links_out(directory)
    n_stored = 0
    index = directory / INDEX_FILE
    if index.is_file():
        check_files(index, read_object(index))
    for shard in shards_of(directory):
        try:
            with safe_open(shard, framework="numpy") as stream:  # torch would map it for writing
                n_stored += sum(math.prod(stream.get_slice(name).get_shape()) for name in list(stream.keys()))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{shard}: missing or damaged ({error})") from error
    return n_stored


def open_hf_directory(directory: Path) -> Artifact:
    """Open a Hugging Face directory as an artifact whose digest is that of its files' names and contents.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    place = directory.resolve()
    config = read_object(place / CONFIG_FILE)
    if "model_type" not in config:
        raise CheckpointError(
            f"{place}: is no complete artifact (no manifest.json), no Hugging Face directory (its config.json has no model_type) "
            "and no checkpoint of this project"
        )
    check_shards(place)
    return artifact_of_files(place, STAGE, checkpoint_files_of(place), {"model_type": config["model_type"]})


def artifact_of_files(place: Path, stage: str, files: Iterable[Path], config: dict[str, Any]) -> Artifact:
    """Return a directory without a manifest as an artifact; its digest is that of the files' names and contents."""
    digest = _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    return Artifact(path=place, stage=stage, key=digest, digest=digest, config=config, inputs={}, metrics={}, created="")


@lru_cache
def _digest(files: Iterable[tuple[Path, int, int]]) -> str:
    """Hash names and contents; a walk asks many times, so what was hashed is remembered by path, size and time of change."""
    digest = hashlib.sha256()
    for file, _, _ in progress(files, "hashing the base", unit="file"):
        digest.update(f"{file.name}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()
