"""Base of the tokenizers that a test plants to decide how text is cut: they encode, and nothing else is asked of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

from adapt.text.contract import ChatForm


class EncodesOnly(ABC):
    """A `TextTokenizer` whose subclass gives `encode`; any other use of it is a mistake of the test."""

    source, digest = "planted", "planted"
    vocab_size, pad_id, unk_id, bos_id, eos_id, mask_id = 10, 0, 1, 2, 3, 4

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Cut a text as the test wants it cut."""

    whole = None
    marks: frozenset[str] = frozenset()

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def save(self, directory: Path) -> None:
        raise AssertionError("a planted tokenizer encodes only")

    def chat(self, system: str | None) -> ChatForm:
        raise AssertionError("a planted tokenizer encodes only")

    def decode(self, ids: Iterable[int]) -> str:
        raise AssertionError("a planted tokenizer encodes only")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        raise AssertionError("a planted tokenizer encodes only")


class LongestMatch(EncodesOnly):
    """Cuts a text into the longest of some pieces; other characters become bytes, or unknown where there are none.

    `fold` changes a text before it is cut, as normalisers do. Ids: five special tokens, 256 bytes, then the pieces.
    """

    SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")

    def __init__(self, pieces: Iterable[str], *, has_bytes: bool = True, fold: Callable[[str], str] = str) -> None:
        self._own = list(dict.fromkeys(pieces))
        self._fold, self._has_bytes = fold, has_bytes
        self._written = [*self.SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *self._own]
        self._ids = {piece: 261 + place for place, piece in enumerate(self._own)}
        self.vocab_size = len(self._written)

    def encode(self, text: str) -> list[int]:
        text, ids = self._fold(text), []
        while text:
            piece = max((piece for piece in self._own if text.startswith(piece)), key=len, default=None)
            if piece is not None:
                ids.append(self._ids[piece])
            elif self._has_bytes:
                ids += [5 + byte for byte in text[0].encode()]
            else:
                ids.append(self.unk_id)
            text = text[len(piece or " ") :]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        raw = b""
        for token in ids:
            is_byte = 5 <= token < 261
            raw += bytes([token - 5]) if is_byte else self._written[token].encode() if token >= 261 else b""
        return raw.decode("utf-8", "replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self._written[token] for token in ids]
