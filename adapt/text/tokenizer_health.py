"""Health of a tokenizer on texts: tokens per text, characters spelt in bytes, losses in a round trip, reachable special tokens.

Everything is asked through `TextTokenizer`, so that it holds for any vocabulary. A piece is a part of a character where it is a
byte of several (`<0xE4>`), or where it decodes to U+FFFD: that covers byte fallback and byte-level vocabularies.

Sources: characters a token and byte fallback as in Rust et al. 2021 (arXiv:2012.15613, fertility) and Petrov et al. 2023
(arXiv:2305.15425).
"""

from __future__ import annotations

import enum
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from adapt.text.contract import TextTokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_FIRST_PART = 0x80  # of UTF-8: a byte below it is a character, such as the end of a line
_LIKE_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[[A-Z][A-Z_0-9]{1,30}\]")
_REPLACEMENT = "\ufffd"
_BATCH = 512
_MOST_EXAMPLES, _MOST_CHARACTERS = 3, 20
_AROUND = 12  # characters of an example on either side of its first difference
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_MOST_PARTS, _MOST_UNKNOWN = 0.03, 0.001  # shares of tokens
_LEAST_UNSPACED, _LEAST_SPACED = 1.0, 2.5  # characters a token
_LEAST_CHARACTERS = 2000  # of a text from which its characters a token say something
_TELLING_CHARACTERS = 1_000_000  # of text from which unused pieces say something
_MOST_UNUSED = 0.5


class Level(enum.Enum):
    """How much a finding weighs: a fault is refused by a walk, a warning costs accuracy or time, a note is good to know."""

    FAULT = "fault"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something a tokenizer does badly: where, what, and what to change."""

    level: Level
    where: str
    says: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: {self.says}; {self.mend}"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A text that does not decode to itself, around its first difference, and the likely cause."""

    cause: str
    text: str
    decoded: str


@dataclass(kw_only=True)
class TextHealth:
    """Counts over the texts of one task or domain; `spelt` are characters without a piece of their own, by how often they occur."""

    name: str
    texts: int = 0
    characters: int = 0
    tokens: int = 0
    part_tokens: int = 0
    unknown_tokens: int = 0
    is_spaced: bool = True
    spelt: dict[str, int] = field(default_factory=dict)
    lost_texts: dict[str, int] = field(default_factory=dict)
    examples: list[Loss] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    @property
    def characters_a_token(self) -> float:
        return self.characters / max(self.tokens, 1)

    @property
    def part_share(self) -> float:
        return self.part_tokens / max(self.tokens, 1)

    @property
    def unknown_share(self) -> float:
        return self.unknown_tokens / max(self.tokens, 1)

    @property
    def n_lost(self) -> int:
        return sum(self.lost_texts.values())


class Pieces:
    """Which of a tokenizer's ids are parts of characters; asked once for each id."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bool] = {}

    def is_part(self, token: int) -> bool:
        """Say whether a token is a piece of a character, as bytes are."""
        if token not in self._known:
            piece = self._tokenizer.pieces([token])[0]
            byte = _BYTE.fullmatch(piece)
            is_byte = byte is not None and int(byte[1], 16) >= _FIRST_PART
            self._known[token] = is_byte or (piece != _REPLACEMENT and _REPLACEMENT in self._tokenizer.decode([token]))
        return self._known[token]


def health_of(tokenizer: TextTokenizer, name: str, texts: Iterable[str], *, with_losses: bool = True) -> TextHealth:
    """Measure texts; without losses nothing is decoded but single pieces."""
    found, pieces = TextHealth(name=name), Pieces(tokenizer)
    letters: Counter[str] = Counter()
    tokens: Counter[int] = Counter()
    for batch in _batches(texts):
        for text, ids in zip(batch, map(tokenizer.encode, batch), strict=True):
            found.texts += 1
            found.characters += len(text)
            tokens.update(ids)
            letters.update(text)
            if with_losses:
                _take_loss(found, tokenizer, text, ids)
    found.tokens, found.used = sum(tokens.values()), set(tokens)
    found.part_tokens = sum(count for token, count in tokens.items() if pieces.is_part(token))
    found.unknown_tokens = 0 if tokenizer.unk_id is None else tokens[tokenizer.unk_id]
    found.is_spaced = is_spaced(letters)
    if found.part_tokens or found.unknown_tokens:
        found.spelt = _spelt(tokenizer, letters, pieces)
    return found


def is_spaced(letters: Counter[str]) -> bool:
    """Say whether most letters belong to scripts with spaces between words."""
    counted = {c: count for c, count in letters.items() if c.isalpha()}
    unspaced = sum(count for c, count in counted.items() if unicodedata.name(c, "").startswith(_UNSPACED))
    return 2 * unspaced < sum(counted.values())


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _spelt(tokenizer: TextTokenizer, letters: Counter[str], pieces: Pieces) -> dict[str, int]:
    """Return the most frequent characters that are spelt in parts, or unknown."""
    ordered = [c for c, _ in letters.most_common()]
    spelt = (
        c
        for c, ids in zip(ordered, map(tokenizer.encode, ordered), strict=True)
        if any(token == tokenizer.unk_id or pieces.is_part(token) for token in ids)
    )
    return {c: letters[c] for c, _ in zip(spelt, range(_MOST_CHARACTERS), strict=False)}


def _take_loss(found: TextHealth, tokenizer: TextTokenizer, text: str, ids: Sequence[int]) -> None:
    decoded = tokenizer.decode(ids)
    if decoded == text:
        return
    cause = "unknown characters" if tokenizer.unk_id is not None and tokenizer.unk_id in ids else cause_of(text, decoded)
    found.lost_texts[cause] = found.lost_texts.get(cause, 0) + 1
    if found.lost_texts[cause] <= _MOST_EXAMPLES:
        place = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), min(len(text), len(decoded)))
        around = slice(max(place - _AROUND, 0), place + _AROUND)
        found.examples.append(Loss(cause=cause, text=text[around], decoded=decoded[around]))


def cause_of(text: str, decoded: str) -> str:
    """Name the loss between a text and its round trip: the mildest normalization that makes both equal."""
    folds = (
        ("white space", lambda x: "".join(x.split())),
        ("letters' case", str.casefold),
        ("width and compatibility forms", lambda x: unicodedata.normalize("NFKC", x)),
        ("accents", lambda x: "".join(c for c in unicodedata.normalize("NFD", x) if not unicodedata.combining(c))),
    )
    for cause, fold in folds:
        if fold(text) == fold(decoded):
            return cause
    for _, fold in reversed(folds):
        text, decoded = fold(text), fold(decoded)
    return "several of case, width, accents and space" if text == decoded else "other characters"


def reachable_specials(tokenizer: TextTokenizer) -> list[str]:
    """Return the special tokens that a text produces by spelling them: those with a role, and all that are written like one."""
    roles = {
        i for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id) if i is not None
    }
    written = tokenizer.pieces(range(tokenizer.vocab_size))
    special = [
        (token, piece)
        for token, piece in enumerate(written)
        if token in roles or (_LIKE_SPECIAL.fullmatch(piece) and not _BYTE.fullmatch(piece))
    ]
    encoded = [tokenizer.encode(piece) for _, piece in special]
    return [piece for (token, piece), ids in zip(special, encoded, strict=True) if token in ids and token != tokenizer.unk_id]


def unused_pieces(tokenizer: TextTokenizer, healths: Sequence[TextHealth]) -> int:
    """Return how many pieces of the vocabulary occur in none of the texts."""
    return tokenizer.vocab_size - len(set().union(*(health.used for health in healths)))


def findings_on(health: TextHealth) -> list[Finding]:
    """Return a tokenizer's findings on some texts."""
    found = byte_findings(health)
    least = _LEAST_SPACED if health.is_spaced else _LEAST_UNSPACED
    if health.characters >= _LEAST_CHARACTERS and health.characters_a_token < least:
        script = "with spaces between words" if health.is_spaced else "without spaces between words"
        found.append(
            Finding(
                level=Level.WARNING,
                where=health.name,
                says=f"{health.characters_a_token:.2f} characters a token, below {least:g} for a script {script}",
                mend="texts cost more tokens and are cut earlier; take a base whose tokenizer was trained on this language",
            )
        )
    for cause, count in health.lost_texts.items():
        example = next(loss for loss in health.examples if loss.cause == cause)
        found.append(
            Finding(
                level=Level.WARNING,
                where=health.name,
                says=f"{count:,} of {health.texts:,} texts do not decode to themselves "
                f"({cause}: {example.text!r} -> {example.decoded!r})",
                mend="what is lost tells no labels apart; take another base if it should",
            )
        )
    return found


def byte_findings(health: TextHealth) -> list[Finding]:
    """Return findings on the shares of bytes and of unknown tokens; `health` may be measured without losses."""
    found = []
    often = " ".join(repr(c)[1:-1] for c in health.spelt)
    if health.part_share > _MOST_PARTS:
        found.append(
            Finding(
                level=Level.WARNING,
                where=health.name,
                says=f"{100 * health.part_share:.1f} % of the tokens are parts of a character (most often of: {often})",
                mend="the model knows these characters badly; take a base whose vocabulary has them, or replace them in the rows",
            )
        )
    if health.unknown_share > _MOST_UNKNOWN:
        found.append(
            Finding(
                level=Level.WARNING,
                where=health.name,
                says=f"{100 * health.unknown_share:.1f} % of the tokens are unknown (most often: {often})",
                mend="texts that differ only there look the same to the model; take a base with byte fallback",
            )
        )
    return found


def vocabulary_findings(tokenizer: TextTokenizer, healths: Sequence[TextHealth]) -> list[Finding]:
    """Return findings on the vocabulary: special tokens that text reaches, and pieces that much text never uses."""
    found = []
    reachable = reachable_specials(tokenizer)
    if reachable:
        found.append(
            Finding(
                level=Level.WARNING,
                where="vocabulary",
                says=f"a text that spells {', '.join(reachable[:8])} is read as the special token",
                mend="make these control symbols, which no text produces, or take them out of the rows",
            )
        )
    unused, characters = unused_pieces(tokenizer, healths), sum(health.characters for health in healths)
    if characters >= _TELLING_CHARACTERS and unused > _MOST_UNUSED * tokenizer.vocab_size:
        found.append(
            Finding(
                level=Level.NOTE,
                where="vocabulary",
                says=f"{unused:,} of {tokenizer.vocab_size:,} pieces occur nowhere in {characters:,} characters",
                mend="a base with a vocabulary for this language has shorter texts for the same memory",
            )
        )
    return found
