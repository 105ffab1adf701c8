"""The tokenizer of a checkpoint, compared with the model's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapt.checkpoint.file_sums import refuse_links_out
from adapt.checkpoint.hf_directory import CONFIG_FILE, is_hf_directory, is_own_form
from adapt.core.artifacts import MANIFEST
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object
from adapt.text.contract import TextTokenizer
from adapt.text.hf_commands import command_for_tokenizer, command_to_fetch_tokenizer
from adapt.text.hf_tokenizer import TOKENIZER_FILE, TOKENIZER_FILES, HFTokenizer
from adapt.text.tokenizer import MODEL_FILE, Tokenizer

_OLDER_FORMS = ("vocab.json", "merges.txt", "vocab.txt", "spiece.model")


class HasVocabulary(Protocol):
    """A model, or the settings of one."""

    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class _Vocabulary:
    vocab_size: int


def tokenizer_of(directory: Path) -> TextTokenizer:
    """Load a checkpoint's tokenizer without its model, of which only the configuration is read. Raises as `load_tokenizer` does."""
    size = read_object(directory / CONFIG_FILE).get("vocab_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{directory / CONFIG_FILE}: has no vocab_size, against which the tokenizer could be checked")
    return load_tokenizer(directory, _Vocabulary(vocab_size=size))


def has_tokenizer(directory: Path) -> bool:
    return (directory / MODEL_FILE).is_file() or (directory / TOKENIZER_FILE).is_file()


def load_tokenizer(directory: Path, model: HasVocabulary) -> TextTokenizer:
    """Load a checkpoint's tokenizer and compare it with the model's vocabulary (`model` may be its settings).

    Raises:
        CheckpointError: there is none, or the sizes do not fit.
    """
    refuse_links_out(directory)
    if is_hf_directory(directory):
        return _load_foreign_tokenizer(directory, model)
    if not has_tokenizer(directory):
        raise CheckpointError(
            f"{directory}: has no tokenizer ({MODEL_FILE} or {TOKENIZER_FILE}), so no text can be read or scored; copy it there, "
            "or import the checkpoint again: `python -m pipelines.import_checkpoint ... import_checkpoint.tokenizer=FILE`"
        )
    tokenizer = open_tokenizer(directory)
    check_vocabulary(tokenizer, model)
    return tokenizer


def open_tokenizer(place: Path) -> TextTokenizer:
    """Open a SentencePiece model or a `tokenizer.json` with what lies beside it, given as a file or by its directory.

    Raises:
        CheckpointError: there is none, it is damaged, or it puts a space before every text.
    """
    if place.is_dir():
        # A model of this project in the form of a Hugging Face directory has both; its own one is the one that it was trained with.
        has_own = is_own_form(place) and (place / MODEL_FILE).is_file()
        place = place / (TOKENIZER_FILE if (place / TOKENIZER_FILE).is_file() and not has_own else MODEL_FILE)
    if not place.is_file():
        raise CheckpointError(f"{place}: no such tokenizer; give a SentencePiece model or a {TOKENIZER_FILE}")
    if place.name == TOKENIZER_FILE:
        # What a model's own config.json says of special tokens is left out: it does not go with the tokenizer.
        files = {name: (place.parent / name).read_bytes() for name in TOKENIZER_FILES if (place.parent / name).is_file()}
        return HFTokenizer(files, {}, str(place), is_recorded=(place.parent / MANIFEST).is_file())
    tokenizer = Tokenizer.load(place)
    _refuse_prefix(tokenizer)
    return tokenizer


def _refuse_prefix(tokenizer: Tokenizer) -> None:
    if tokenizer.pieces(tokenizer.encode("a"))[0].startswith("▁"):
        raise CheckpointError(
            f"{tokenizer.source}: puts a space before every text, so parts of a prompt could not be joined; give a "
            f"{TOKENIZER_FILE}: {command_for_tokenizer(Path(tokenizer.source).parent)}"
        )


def _load_foreign_tokenizer(directory: Path, model: HasVocabulary) -> TextTokenizer:
    """Load the tokenizer of a Hugging Face directory; its model may have more rows than tokens, never fewer."""
    tokenizer: TextTokenizer
    if (directory / TOKENIZER_FILE).is_file():
        tokenizer = HFTokenizer.load(directory)
    elif (directory / MODEL_FILE).is_file():
        tokenizer = open_tokenizer(directory / MODEL_FILE)
    else:
        is_older = any((directory / name).is_file() for name in _OLDER_FORMS)
        mend = command_for_tokenizer(directory) if is_older else command_to_fetch_tokenizer(directory)
        raise CheckpointError(f"{directory}: has neither {TOKENIZER_FILE} nor {MODEL_FILE}; {mend}")
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"{tokenizer.source}: has {tokenizer.vocab_size} tokens, but the model's vocabulary is {model.vocab_size}; "
            "give the tokenizer the model was trained with"
        )
    return tokenizer


def check_vocabulary(tokenizer: TextTokenizer, model: HasVocabulary) -> None:
    """Raise CheckpointError unless tokenizer and model have the same vocabulary size."""
    if tokenizer.vocab_size != model.vocab_size:
        raise CheckpointError(
            f"{tokenizer.source}: has {tokenizer.vocab_size} tokens, but the model's vocabulary is {model.vocab_size}; "
            "set model.vocab_size to the tokenizer's, or give the tokenizer the model was trained with"
        )
