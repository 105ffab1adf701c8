"""A SentencePiece BPE model as a `tokenizer.json`, which transformers opens without SentencePiece and without code.

SentencePiece joins the pair whose joined piece scores best, the leftmost first; a `tokenizer.json` lists pairs in the order of that
score. So both cut a text alike, but where two pairs of one piece overlap. Whoever writes such a file compares both on texts
(`first_difference`); a model that is no BPE, or that changes texts before it cuts them, differs at once.

`PART_MARK` separates parts of a prompt, which this project encodes on their own: the written tokenizer cuts there and takes the
mark out. It is a noncharacter (Unicode 23.7: for internal use, in no text that is passed on).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from adapt.text.tokenizer import Tokenizer, VocabularyEntry

PART_MARK = "\ufdd0"
SPACE = "\u2581"
PROBES = (
    "", " ", "  a  b ", "好", "好的 a", "第一行\n第二行\r\n\t", "，：？！（）“”…", "0123 456.78%", "ＡＢＣ１２３",
    "é ß Ω я 日本語 한국어", "\U0001f44d\U0001f3fd\U0001f1e8\U0001f1f3", "\u2581", "aaaaaaaaaaa", "……………………", "哈哈哈哈哈哈哈",
    "----------------", "<s></s><pad><mask><unk>", "<0x0A>", "\u00a0\u3000\u200b",
)  # fmt: skip


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` that cuts texts as the tokenizer does and starts documents with its start."""
    entries = tokenizer.vocabulary()
    marks = [number for number, entry in enumerate(entries) if entry.is_mark]
    start = entries[tokenizer.bos_id].piece
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, entries[number].piece) for number in marks],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": PART_MARK}, "behavior": "Removed", "invert": False},
        "post_processor": _starting_with(start, tokenizer.bos_id),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": entries[tokenizer.unk_id].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": any(entry.is_byte for entry in entries),
            "ignore_merges": False,
            "vocab": {entry.piece: number for number, entry in enumerate(entries)},
            "merges": _merges(entries),
        },
    }


def tokenizer_settings(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    """Return the content of its `tokenizer_config.json`: special tokens, which no text produces."""
    entries = tokenizer.vocabulary()
    special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    if tokenizer.mask_id is not None:
        special["mask"] = tokenizer.mask_id
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": entries[number].piece for role, number in special.items()},
        "model_max_length": context_length,
        "padding_side": "left",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def first_difference(own: Tokenizer, encode: Callable[[str], Sequence[int]], texts: Iterable[str]) -> str | None:
    """Return the first text, of the probes and those given, that is cut otherwise by `encode`; None where there is none."""
    return next((text for text in (*PROBES, *texts) if list(encode(text)) != own.encode(text)), None)


def json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _merges(entries: Sequence[VocabularyEntry]) -> list[list[str]]:
    """Return every pair of pieces that join to a piece, in the order in which SentencePiece prefers them."""
    scores = {entry.piece: entry.score for entry in entries if entry.is_plain}
    found: list[tuple[float, int, list[str]]] = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, cut, [left, right]))
    return [pair for _, _, pair in sorted(found, key=lambda one: one[:2])]


def _added(number: int, piece: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": piece, **flags, "special": True}


def _starting_with(start: str, number: int) -> dict[str, Any]:
    def text(letter: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": start, "type_id": kind}}, {"Sequence": {"id": letter, "type_id": kind}}]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {start: {"id": start, "ids": [number], "tokens": [start]}},
    }
