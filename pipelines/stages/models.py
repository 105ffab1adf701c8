"""Artifacts that hold a model: opening the one that a setting names, and finding the weights of one."""

from __future__ import annotations

from pathlib import Path

from adapt.checkpoint.foreign_places import mend_of
from adapt.checkpoint.hf_directory import CONFIG_FILE, open_hf_directory
from adapt.core.artifacts import Artifact, is_artifact, open_artifact, read_manifest, refuse_dangling
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object
from adapt.core.store_places import is_key

_CONTEXT_KEYS = ("context_length", "max_position_embeddings", "n_positions")
_LEAST_CONTEXT = 64


def open_model_artifact(path: Path, key: str = "checkpoint") -> Artifact:
    """Open an artifact, export or bare checkpoint that holds a model, or a Hugging Face directory, given by a configuration key.

    Raises:
        CheckpointError: there is none, or it has no weights.
    """
    from adapt.checkpoint.weights import is_bare_checkpoint, open_bare_checkpoint

    refuse_dangling(path, "run its stage again")
    if not is_artifact(path) and (mend := mend_of(path, key)) is not None:
        raise CheckpointError(f"{path}: {mend}")
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such directory; {key}= takes an artifact or export that holds a model, or a Hugging Face directory"
        )
    if not is_artifact(path) and is_bare_checkpoint(path):
        return open_bare_checkpoint(path)
    if not is_artifact(path) and (path / CONFIG_FILE).is_file():
        return open_hf_directory(path)
    artifact = open_artifact(path.resolve())
    try:
        weights_of(artifact)
    except CheckpointError:
        raise CheckpointError(f"{path}: is the artifact of stage '{artifact.stage}' and holds no model weights") from None
    return artifact


def weights_of(artifact: Artifact) -> Path:
    """Return the directory with an artifact's weights: its own, or, where nothing was adapted, its base's."""
    from adapt.checkpoint.weights import has_weights

    if has_weights(artifact.path):
        return artifact.path
    base = input_place(artifact, "base")
    if base is not None and has_weights(base):
        return base
    ref = artifact.inputs.get("base")
    gone = "" if ref is None or base is not None else f" (its base, {ref.path}, is gone)"
    raise CheckpointError(
        f"{artifact.path}: holds no model weights{gone}; give a checkpoint made by pretrain, continue_pretrain or export"
    )


def input_place(artifact: Artifact, name: str) -> Path | None:
    """Return where an input of an artifact is now: in the same store, which may have been moved, else where it was.

    None where it is gone; what lies there under another digest is another one.
    """
    ref = artifact.inputs.get(name)
    if ref is None:
        return None
    was = Path(ref.path)
    beside = [artifact.path.resolve().parents[1].joinpath(*was.parts[-2:])] if is_key(was.name) else []
    for place in [*beside, was]:
        if place.is_dir() and (not is_artifact(place) or read_manifest(place)["digest"] == ref.digest):
            return place
    return None


def context_of(base: Path) -> int:
    """Return how many tokens a base reads, as its configuration says."""
    config = read_object(base / CONFIG_FILE)
    return next((int(config[key]) for key in _CONTEXT_KEYS if isinstance(config.get(key), int)), _LEAST_CONTEXT)
