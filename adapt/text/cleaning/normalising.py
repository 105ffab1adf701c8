"""Rewriting text as declared. Nothing is rewritten that needs no rewriting: most documents come back as the same object."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from adapt.core.errors import ConfigError
from adapt.text.cleaning.characters import Batch, Sign, converter
from adapt.text.cleaning.config import NormaliseConfig, Script, UnicodeForm

_TAKEN_OUT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
_LINE_END = re.compile("\r\n|\r|\u0085|\u2028|\u2029")
_TRIM = re.compile(r"[^\S\n]*\n[^\S\n]*")
_UNTRIMMED = re.compile(r"\n(?:\s|\n\n)|[^\S\n]\n")
_EMPTY_LINES = re.compile(r"\n{3,}")
_CONVERTER = {Script.SIMPLIFIED: "t2s", Script.TRADITIONAL: "s2t"}


def check_normalising(config: NormaliseConfig, *, wants_scripts: bool) -> None:
    """Raise ConfigError where OpenCC is wanted and not installed."""
    if config.script is Script.AS_IS and not wants_scripts:
        return
    try:
        converter("t2s")
    except ImportError as error:
        raise ConfigError("corpus: telling or converting Chinese scripts needs OpenCC; pip install 'moe-adapt[corpus]'") from error


def normalised(batch: Batch, config: NormaliseConfig) -> list[str]:
    """Return the texts rewritten as the settings say, in their order."""
    found = list(batch.texts)
    if config.cleans_lines:
        counts_DC = batch.counts_DC
        hidden_D = counts_DC[:, Sign.CONTROL] + counts_DC[:, Sign.ZERO_WIDTH] > 0
        for place in (hidden_D | (counts_DC[:, Sign.NEWLINE] + counts_DC[:, Sign.SPACE] > 0)).nonzero()[0].tolist():
            found[place] = _clean_lines(found[place], has_hidden=bool(hidden_D[place]))
    if config.unicode is not UnicodeForm.AS_IS:
        form: Literal["NFC", "NFKC"] = "NFC" if config.unicode is UnicodeForm.NFC else "NFKC"
        found = [text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text) for text in found]
    if config.script is not Script.AS_IS:
        convert = converter(_CONVERTER[config.script]).convert
        found = [convert(text) for text in found]
    return found


def _clean_lines(text: str, *, has_hidden: bool) -> str:
    if any(end in text for end in ("\r", "\u2028", "\u2029", "\u0085")):
        text = _LINE_END.sub("\n", text)
    if has_hidden:
        text = _TAKEN_OUT.sub("", text)
    if "\n" in text and _UNTRIMMED.search(text):
        text = _EMPTY_LINES.sub("\n\n", _TRIM.sub("\n", text))
    return text.strip()
