"""The tensors of a Hugging Face directory as read-only views of its files: the weights of a base that is frozen in training."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from adapt.checkpoint.mapped_source import MappedFiles
from adapt.checkpoint.offload import Verify
from adapt.checkpoint.store import Store, open_store
from adapt.core.errors import ConfigError
from adapt.model.hf import PREFIX, shapes_of


def check_stacks(directory: Path) -> None:
    """See that a base's experts, if it has some, are the tensors of its files.

    Raises:
        ConfigError: the model stacks tensors of single experts.
        CheckpointError: the directory is damaged, or not served.
    """
    stored = open_store(directory, Verify.NEVER).tensors
    experts = [name.removeprefix(PREFIX) for name in shapes_of(directory)[0] if ".experts." in name]
    if any(name not in stored for name in experts):
        raise ConfigError(
            f"offload.frozen_weights=mapped: {directory} stores experts one by one, and the model stacks copies of them; set it to "
            "memory"
        )


def frozen_views(store: Store) -> dict[str, Tensor]:
    """Return the tensors of an opened directory by name. Raises CheckpointError where a file is missing or cut off."""
    files = MappedFiles()
    return {name: files.view(place) for name, place in store.tensors.items()}
