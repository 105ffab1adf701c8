"""SentencePiece BPE tokenizers: training, loading and the rules that keep Chinese text whole.

Training uses the `identity` normalizer, so that full-width punctuation (，？：) stays what it is, no dummy prefix, and byte
fallback, so that encoding and decoding give the text back (but for U+2581, SentencePiece's own sign for the space). `<mask>`
is a control symbol: no text can produce it.
(Kudo and Richardson 2018, arXiv:1808.06226; Sennrich et al. 2016, arXiv:1508.07909 for BPE.)
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.runtime import generator_for
from adapt.core.settings import Settings, setting
from adapt.text.contract import ChatForm
from adapt.text.tokenizer_training import TrainerRefusal, trained_model

PAD, UNK, BOS, EOS, MASK = "<pad>", "<unk>", "<s>", "</s>", "<mask>"
MODEL_FILE = "tokenizer.model"
_MAX_SENTENCE_BYTES = 8192
_BYTES_A_CHARACTER = 85  # of Chinese text, while SentencePiece trains; measured, as docs/scale.md says
logger = logging.getLogger(__name__)
_MAX_PIECE = _MAX_SENTENCE_BYTES // 4  # characters, of four bytes at most
_SENTENCE_END = re.compile(r"[。！？；…!?;\s]+|[.,，、](?=.)")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Settings):
    """How a tokenizer is trained."""

    vocab_size: int = setting(8000, "Pieces of the vocabulary, bytes and special tokens included.", least=1, unit="pieces")
    max_sentences: int = setting(
        400_000, "Sentences drawn from the corpus to train on; memory grows with them.", least=1, unit="sentences"
    )
    character_coverage: float = setting(
        0.9995, "Share of the corpus's characters that get a piece of their own; the rest is spelt in bytes.", above=0, most=1
    )
    memory_gb: float | None = setting(
        None,
        "Memory that training may take by its estimate; fewer of the drawn sentences are taken where they would need more.",
        above=0,
        unit="GB",
        hint="null takes all that were drawn; the estimate is said before training",
    )
    threads: int = setting(2, "CPU threads that train the tokenizer.", least=1)


@dataclass(frozen=True, kw_only=True)
class VocabularyEntry:
    """A token as it is written; its score, by which SentencePiece joins the better piece first; whether it is a mark or a byte."""

    piece: str
    score: float
    is_mark: bool
    is_byte: bool
    is_unused: bool

    @property
    def is_plain(self) -> bool:
        """Whether text is cut into it by joining."""
        return not (self.is_mark or self.is_byte or self.is_unused)


class Tokenizer:
    """A SentencePiece model with this project's special tokens."""

    def __init__(self, model_bytes: bytes, source: str) -> None:
        self._bytes = model_bytes
        self.source = source
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise CheckpointError(f"{source}: not a SentencePiece model") from error
        self.vocab_size = int(self._processor.vocab_size())
        self.pad_id = max(int(self._processor.pad_id()), 0)
        self.unk_id = int(self._processor.unk_id())
        self.bos_id = int(self._processor.bos_id())
        self.eos_id = int(self._processor.eos_id())
        mask_id = int(self._processor.piece_to_id(MASK))
        self.mask_id: int | None = mask_id if mask_id != self.unk_id else None
        if self.bos_id < 0 or self.eos_id < 0:
            raise CheckpointError(f"{source}: has no <s> or </s>; train it with `python -m pipelines.tokenizer`")
        for mark in (self.bos_id, self.eos_id, self.mask_id):
            if mark is not None and mark in self.encode(str(self._processor.id_to_piece(mark))):
                piece = self._processor.id_to_piece(mark)
                raise CheckpointError(
                    f"{source}: a text with {piece} in it would get the token of that name; make it a control symbol"
                )

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Load a `.model` file, or the one in a directory.

        Raises:
            CheckpointError: there is none, or it is not a SentencePiece model.
        """
        file = path / MODEL_FILE if path.is_dir() else path
        try:
            return cls(file.read_bytes(), str(file))
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such tokenizer; run `python -m pipelines.tokenizer` first") from None

    @cached_property
    def marks(self) -> frozenset[str]:
        """The control symbols, and the unknown token, as they are written."""
        ids = [i for i in range(self.vocab_size) if self._processor.is_control(i) or self._processor.is_unknown(i)]
        return frozenset(str(self._processor.id_to_piece(i)) for i in ids)

    def vocabulary(self) -> list[VocabularyEntry]:
        """Return every token in the order of ids."""
        model = self._processor
        return [
            VocabularyEntry(
                piece=str(model.id_to_piece(i)),
                score=float(model.get_score(i)),
                is_mark=bool(model.is_control(i) or model.is_unknown(i)),
                is_byte=bool(model.is_byte(i)),
                is_unused=bool(model.is_unused(i)),
            )
            for i in range(self.vocab_size)
        ]

    def save(self, directory: Path) -> None:
        (directory / MODEL_FILE).write_bytes(self._bytes)

    def with_pieces(self, pieces: Sequence[str]) -> Tokenizer:
        """Return the tokenizer with more pieces behind its own; text is cut into its own ones first, which are then joined."""
        lowest = min(float(self._processor.get_score(token)) for token in range(self.vocab_size))
        return Tokenizer(_appended(self._bytes, pieces, lowest), self.source)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._bytes).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return token ids without document marks; the empty text gives an empty list."""
        return list(self._processor.encode(text))

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in self._processor.encode(texts)]

    @property
    def whole(self) -> None:
        """Parts of a prompt are encoded on their own, as this project's bases were trained."""
        return None

    def chat(self, system: str | None) -> ChatForm:
        """Raise ConfigError: this project's bases have no chat template."""
        raise ConfigError(
            f"{self.source}: a tokenizer of this project has no chat template; leave chat out of the prompt, or take an "
            "instruction-tuned Hugging Face base"
        )

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._processor.decode([int(i) for i in ids]))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [str(self._processor.id_to_piece(int(i))) for i in ids]


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, where: str) -> Tokenizer:
    """Train a BPE tokenizer; the same texts and settings give the same model.

    Raises:
        ConfigError: the corpus is too small for the vocabulary, or memory ran out.
    """
    options = {
        "model_type": "bpe",
        "vocab_size": config.vocab_size,
        "character_coverage": config.character_coverage,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "split_digits": True,
        "required_chars": "\u2581",  # the space: without it, a corpus without spaces could not spell one
        "input_sentence_size": 0,
        "shuffle_input_sentence": False,
        "max_sentence_length": _MAX_SENTENCE_BYTES,
        "num_threads": config.threads,
        "control_symbols": [MASK],
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "pad_piece": PAD,
        "unk_piece": UNK,
        "bos_piece": BOS,
        "eos_piece": EOS,
    }
    drawn = _sample((piece for text in texts for piece in _pieces(text)), config.max_sentences)
    try:
        return Tokenizer(trained_model(_within(*drawn, config.memory_gb), options), where)
    except TrainerRefusal as error:
        reason = str(error).rsplit("]", 1)[-1].strip() or "no usable text"
        raise ConfigError(
            f"{where}: cannot train a vocabulary of {config.vocab_size} ({reason}); change tokenizer.vocab_size or give more text"
        ) from error


def _pieces(text: str) -> Iterator[str]:
    """Yield a text's lines, long ones in pieces: SentencePiece passes over what is longer than its limit."""
    for line in text.split("\n"):
        while len(line.encode()) > _MAX_SENTENCE_BYTES:
            ends = [match.end() for match in _SENTENCE_END.finditer(line, 0, _MAX_PIECE)]
            end = ends[-1] if ends else _MAX_PIECE
            yield line[:end]
            line = line[end:]
        if line:
            yield line


def _within(lines: list[str], n_lines: int, memory_gb: float | None) -> list[str]:
    """Return the lines, drawn from `n_lines`; of those that do not fit a budget as many as do. Say what training will take."""
    kept = lines
    if memory_gb is not None:
        order = generator_for("tokenizer budget").permutation(len(lines))
        sizes = np.cumsum([len(lines[place]) for place in order])
        n_kept = int(np.searchsorted(sizes, memory_gb * 1e9 / _BYTES_A_CHARACTER, side="right"))
        kept = [lines[place] for place in sorted(order[:n_kept])]
    size = sum(map(len, kept))
    logger.info(
        "tokenizer: training on %s of %s lines, %s characters: about %.1f GB of memory",
        f"{len(kept):,}", f"{n_lines:,}", f"{size:,}", size * _BYTES_A_CHARACTER / 1e9,
    )  # fmt: skip
    return kept


def _sample(lines: Iterable[str], size: int) -> tuple[list[str], int]:
    """Draw at most `size` lines, each with the same chance (reservoir sampling), the same ones every time; count all lines.

    SentencePiece's own sampling differs from process to process.
    """
    random = generator_for("tokenizer sample")
    kept: list[str] = []
    count = 0
    for line in lines:
        if count < size:
            kept.append(line)
        elif (place := int(random.integers(count + 1))) < size:
            kept[place] = line
        count += 1
    return kept, count


def _appended(model_bytes: bytes, pieces: Sequence[str], below: float) -> bytes:
    """Return a SentencePiece model with pieces behind its own, each scored below the one before.

    A serialised protocol buffer goes on with more of a repeated field by appending it: ModelProto's field 1 is the list of pieces,
    of which field 1 is the text and field 2 the score.
    """
    found = bytearray(model_bytes)
    for number, piece in enumerate(pieces, start=1):
        text = piece.encode()
        body = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", below - number)
        found += b"\x0a" + _varint(len(body)) + body
    return bytes(found)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
