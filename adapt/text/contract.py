"""What the project needs of a tokenizer, whoever made it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class TextTokenizer(Protocol):
    """Text to token ids and back.

    `encode` gives the tokens of a text as the continuation of any other: no document marks, and nothing put before it, so that
    parts of a prompt can be encoded on their own and joined. `bos_id` starts a document. `unk_id` and `mask_id` are absent where
    the vocabulary has no such token; no text can produce a special token. `digest` is that of all files that `save` writes.
    """

    @property
    def source(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def unk_id(self) -> int | None: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def mask_id(self) -> int | None: ...

    @property
    def digest(self) -> str: ...

    def save(self, directory: Path) -> None: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def pieces(self, ids: Iterable[int]) -> list[str]: ...
