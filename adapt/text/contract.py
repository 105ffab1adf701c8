"""What the project needs of a tokenizer, whoever made it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A text's tokens, and for each token the characters [start, end) of the text that it covers."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


WholeEncoder = Callable[[Sequence[str]], list[EncodedText]]


@dataclass(frozen=True, kw_only=True)
class ChatForm:
    """A conversation's text before a user's text and after it, up to the assistant's answer, as a base's chat template writes it.

    `gap` are spaces that the template puts before an answer. `encode` reads `coded_before + text + coded_after + ...`: special
    tokens are spelled there so that only the template can write them, with as many characters as they have in `before` and
    `after`. It puts no document start before the text: a template writes its own.
    """

    before: str
    after: str
    gap: str
    coded_before: str
    coded_after: str
    encode: WholeEncoder


class TextTokenizer(Protocol):
    """Text to token ids and back.

    `encode` gives the tokens of a text as the continuation of any other: no document marks, and nothing put before it, so that
    parts of a prompt can be encoded on their own and joined. `encode_documents` gives the tokens that texts have behind a
    document start. `whole` encodes such texts with the place of each token, for bases whose prompts are encoded as one text;
    where it is absent, parts are encoded on their own. `chat` gives the form of a conversation. `bos_id` starts a document.
    `unk_id` and `mask_id` are absent where the vocabulary has no such token; no text can produce a special token. `marks` are
    all special tokens as they are written.
    `digest` is that of all files that `save` writes.
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
    def marks(self) -> frozenset[str]: ...

    @property
    def digest(self) -> str: ...

    def save(self, directory: Path) -> None: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_documents(self, texts: list[str]) -> list[list[int]]: ...

    @property
    def whole(self) -> WholeEncoder | None: ...

    def chat(self, system: str | None) -> ChatForm:
        """Return the form of a conversation behind a `system` text. Raises ConfigError where the base has no chat template."""

    def decode(self, ids: Iterable[int]) -> str: ...

    def pieces(self, ids: Iterable[int]) -> list[str]: ...
