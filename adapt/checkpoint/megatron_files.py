"""Where Megatron-DeepSpeed checkpoints keep their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt.core.errors import CheckpointError


def find_main(directory: Path, names: Sequence[str]) -> Path:
    """Return the one file that holds the shared part of a model.

    Raises:
        CheckpointError: there is none, more than one, or it is one of several parts.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; source= takes the directory of a foreign checkpoint")
    found = [directory / name for name in names if (directory / name).is_file()]
    if not found:
        raise CheckpointError(f"{directory}: holds none of {', '.join(names)}; is this the checkpoint's directory?")
    if len(found) > 1:
        raise CheckpointError(f"{directory}: holds both {found[0]} and {found[1].name}; leave only the one that is the model")
    main = found[0]
    if (directory / str(main.relative_to(directory)).replace("mp_rank_00", "mp_rank_01")).exists():
        raise CheckpointError(f"{main}: is one of several tensor-parallel parts; merge them into one before importing")
    return main


def module_of(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return the model's own part of a file's content.

    Raises:
        CheckpointError: there is none.
    """
    for key in ("module", "model"):
        if isinstance(content.get(key), Mapping):
            found: Mapping[str, Any] = content[key]
            return found
    raise CheckpointError(
        f"{path}: has neither 'module' nor 'model'; it holds {', '.join(sorted(map(str, content))[:6]) or 'nothing'}"
    )
