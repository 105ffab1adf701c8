"""Base of the tokenizers that a test plants to decide how text is cut: they encode, and nothing else is asked of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path


class EncodesOnly(ABC):
    """A `TextTokenizer` whose subclass gives `encode`; any other use of it is a mistake of the test."""

    source, digest = "planted", "planted"
    vocab_size, pad_id, unk_id, bos_id, eos_id, mask_id = 10, 0, 1, 2, 3, 4

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Cut a text as the test wants it cut."""

    whole = None

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def save(self, directory: Path) -> None:
        raise AssertionError("a planted tokenizer encodes only")

    def decode(self, ids: Iterable[int]) -> str:
        raise AssertionError("a planted tokenizer encodes only")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        raise AssertionError("a planted tokenizer encodes only")
