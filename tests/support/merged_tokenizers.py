"""A small `tokenizer.json` of a Hugging Face base that has something left to join, and domain text that joins it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.hf_checkpoints import BYTE_LEVEL, BYTE_LEVEL_SPACED, START, make_model, tokenizer_text

TEXTS = [
    "患者入院后行腹腔镜胆囊切除术，术后恢复良好。",
    "the patient had a laparoscopic cholecystectomy; the laparoscopic view was good.",
    "laparoscopic 腹腔镜胆囊切除术 MRI",
]
OTHERS = ["今天天气很好，①２３\n第二行😀", "窗外下着小雨。", " 42  ZQ-Q  don't ", "", "<|later|> x", "no new words here"]
LATER = "<|later|>"


def described(kind: str, holes: bool = False) -> dict[str, Any]:
    """Return a tokenizer with a few English merges; with `holes` its last added token has an id behind unused ones."""
    found: dict[str, Any] = json.loads(tokenizer_text(kind))
    vocabulary, merges = found["model"]["vocab"], found["model"]["merges"]
    space = "Ġ" if kind in (BYTE_LEVEL, BYTE_LEVEL_SPACED) else "▁"
    for sign in "abcdefghijklmnopqrstuvwxyzMRI":
        vocabulary.setdefault(sign, len(vocabulary))
    for one, other in (("t", "h"), ("th", "e"), (space, "l"), (space, "the"), ("a", "p"), ("o", "s"), ("c", "h"), (space, "c")):
        if one + other not in vocabulary:
            vocabulary[one + other] = len(vocabulary)
            merges.append([one, other])
    later = len(vocabulary) + (3 if holes else 0)
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    if holes:  # in the vocabulary, as its id could not be kept otherwise
        vocabulary[LATER] = later
    found["added_tokens"].append({"id": later, "content": LATER, "special": True, **form})
    return found


def make_base(place: Path, kind: str, spare: int, family: str = "llama", holes: bool = False, **changes: Any) -> Path:
    """Write a random model with such a tokenizer, `spare` rows more than there are tokens, as a user has it."""
    tokenizer = described(kind, holes)
    size = max(token["id"] for token in tokenizer["added_tokens"]) + 1
    make_model(place, family, size + spare, **changes)
    (place / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    is_byte_level = kind in (BYTE_LEVEL, BYTE_LEVEL_SPACED)
    marks = {"eos_token": START} if is_byte_level else {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {**marks, "tokenizer_class": "PreTrainedTokenizerFast"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return place
