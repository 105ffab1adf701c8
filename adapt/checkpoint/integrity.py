"""Whether a checkpoint's bytes are those that were written: all of them, a sample, or none are hashed.

Sizes and headers are always checked, whatever is asked for here. A sample is another one each time; a checkpoint that is no larger
than the sample is hashed whole.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from adapt.checkpoint.offload import Verify
from adapt.checkpoint.shard_bytes import bytes_of
from adapt.checkpoint.shard_format import ByteRange
from adapt.core.errors import CheckpointError
from adapt.core.progress import progress

SAMPLE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Sum:
    """A tensor's place and the sha256 of each of its equal parts along the first axis."""

    name: str
    place: ByteRange
    sha256: tuple[str, ...]

    def parts(self) -> list[tuple[str, ByteRange, str]]:
        """Return (what it is, where it lies, its sum) of every part."""
        if len(self.sha256) == 1:
            return [(f"tensor {self.name}", self.place, self.sha256[0])]
        return [(f"part {i} of tensor {self.name}", self.place.row(i), text) for i, text in enumerate(self.sha256)]


def check_sums(sums: Sequence[Sum], verify: Verify) -> None:
    """Hash what `verify` asks for.

    Raises:
        CheckpointError: bytes are not those that were written.
    """
    if verify is Verify.NEVER:
        return
    parts = [part for one in sums for part in one.parts()]
    left: float = SAMPLE_BYTES
    if verify is Verify.ALWAYS:
        left = float("inf")
    elif sum(place.n_bytes for _, place, _ in parts) > left:
        random.Random().shuffle(parts)
    for what, place, text in progress(parts, "verifying", total=len(parts), unit="tensor"):
        if place.n_bytes > left:
            continue
        left -= place.n_bytes
        digest = hashlib.sha256()
        for block in bytes_of(place):
            digest.update(block)
        if digest.hexdigest() != text:
            raise CheckpointError(f"{place.file}: damaged ({what} has not the bytes that were written); fetch or make it again")
