"""A prompt that is encoded as one text: the tokens of the tokenizer itself, a kind for each, and one cut for all candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from adapt.core.errors import DataError
from adapt.core.spans import LabelForm, Span, SpannedText
from adapt.text.hf_tokenizer import ENCODING_FILE, HFTokenizer
from pseudo_label.label_word_checks import check_label_words
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow

LINES = [
    "the news is about world sports",
    "this text is about sports and the world",
    "news about science, world news, sports news",
] * 4
WORDS = {"a": "world", "b": "sports", "c": "science"}
TEXT = "Sports in the world: news about the game"


@pytest.fixture(scope="module")
def backend() -> Backend:
    made = Backend(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return made


@pytest.fixture
def tokenizer(backend: Backend) -> HFTokenizer:
    return HFTokenizer({"tokenizer.json": backend.to_str().encode()}, {}, "planted")


def prompt_of(tokenizer: HFTokenizer, template: str, context: int = 200, **changes: Any) -> Prompt:
    settings: dict[str, Any] = {
        "name": "planted",
        "fields": {"one": FieldConfig(path="one"), "two": FieldConfig(path="two")},
        "label_words": WORDS,
        "prompts": {"reference": PromptConfig(template=template)},
        "shorten": ["one", "two"],
    }
    return Prompt(TaskConfig(**{**settings, **changes}), "reference", tokenizer, context)


def row_of(one: str = TEXT, two: str = "news", candidates: tuple[str, ...] | None = None) -> TaskRow:
    return TaskRow(id=1, texts={"one": one, "two": two}, label=None, candidates=candidates, line=3)


def of_kind(text: SpannedText, kind: Span) -> list[int]:
    return text.ids_T[text.kinds_T == int(kind)].tolist()


@pytest.mark.parametrize("template", ["{one}. This is about {label}", "{label} news: {one}.", "{one} {two}\nabout {label}, news"])
def test_tokens_are_those_of_the_whole_text(template: str, tokenizer: HFTokenizer, backend: Backend) -> None:
    prompt, row = prompt_of(tokenizer, template), row_of()
    for label, word in WORDS.items():
        whole = template.format(one=TEXT, two="news", label=word)
        assert prompt.labelled(row, label).ids_T.tolist() == [tokenizer.bos_id, *backend.encode(whole).ids]


def test_a_label_behind_a_space_is_what_a_harness_scores_as_the_continuation(tokenizer: HFTokenizer, backend: Backend) -> None:
    text = prompt_of(tokenizer, "{one}. This is about {label}").labelled(row_of(), "a")
    before = backend.encode(f"{TEXT}. This is about").ids
    assert of_kind(text, Span.LABEL) == backend.encode(f"{TEXT}. This is about world").ids[len(before) :]
    assert backend.decode(of_kind(text, Span.LABEL)) == " world"
    assert backend.decode(of_kind(text, Span.CONTEXT)[1:]) == TEXT
    assert backend.decode(of_kind(text, Span.PROMPT)) == ". This is about"


def test_a_space_that_no_word_joins_is_the_labels_all_the_same(tokenizer: HFTokenizer, backend: Backend) -> None:
    prompt = prompt_of(tokenizer, "{one} about {label}", label_words={"a": "world", "b": "\u9f98"})
    assert [backend.decode(of_kind(prompt.labelled(row_of(), label), Span.LABEL)) for label in "ab"] == [" world", " \u9f98"]


def test_a_space_before_a_field_is_part_of_the_fields_first_word(tokenizer: HFTokenizer, backend: Backend) -> None:
    text = prompt_of(tokenizer, "about {one}: {label}").labelled(row_of("world"), "b")
    assert backend.decode(of_kind(text, Span.CONTEXT)[1:]) == " world"


def test_training_reads_the_tokens_that_scoring_reads(tokenizer: HFTokenizer) -> None:
    prompt, row = prompt_of(tokenizer, "{one}. This is about {label}, yes", context=30), row_of(TEXT * 5)
    for reading, label in zip(prompt.readings(row, LabelForm.CLM), WORDS, strict=True):
        assert np.array_equal(reading.inputs_T, prompt.labelled(row, label).ids_T)


@pytest.mark.parametrize("long", [TEXT * 9, "龘𠮷😀" * 30, "the 龘 world😀 " * 20])
def test_every_candidate_fits_with_one_cut_of_the_row(long: str, tokenizer: HFTokenizer, backend: Backend) -> None:
    for context in range(14, 60):
        prompt = prompt_of(tokenizer, "{one} {two} about {label}", context=context)
        texts = [prompt.labelled(row_of(long), label) for label in WORDS]
        assert max(map(len, texts)) <= context
        rests = set()
        for text, word in zip(texts, WORDS.values(), strict=True):
            filled = backend.decode(text.ids_T[1:].tolist())
            assert filled.endswith(f" about {word}")
            rests.add(filled.removesuffix(word))
        assert len(rests) == 1
        assert long.startswith(rests.pop().removesuffix(" news about ").removesuffix(" new about "))


def test_a_row_that_cannot_be_cut_is_named(tokenizer: HFTokenizer) -> None:
    with pytest.raises(DataError, match="line 3: does not fit into 12 tokens"):
        prompt_of(tokenizer, "{one} about {label}", context=12, shorten=[]).labelled(row_of(), "a")


def test_a_blank_is_filled_in_before_the_text_is_encoded(tokenizer: HFTokenizer, backend: Backend) -> None:
    fields = {"one": FieldConfig(path="one", blank="____")}
    prompt = prompt_of(tokenizer, "{one}.", fields=fields, label_words={}, candidates="candidates", shorten=["one"])
    row = row_of("the ____ news", candidates=("world", "sports"))
    reading = prompt.readings(row, LabelForm.CLM)[1]
    assert reading.inputs_T.tolist()[1:] == backend.encode("the sports news.").ids
    short = prompt_of(
        tokenizer, "{one}.", fields=fields, label_words={}, candidates="candidates", shorten=["one"], context=12
    ).readings(row_of("a game " * 9 + "in the ____ news" + " a game" * 9, candidates=("world", "sports")), LabelForm.CLM)
    for one, word in zip(short, ("world", "sports"), strict=True):
        assert word in backend.decode(one.inputs_T.tolist()[1:])
        assert len(one) <= 12


def test_a_label_that_shares_a_token_with_a_word_is_odd(tokenizer: HFTokenizer) -> None:
    assert prompt_of(tokenizer, "{one} about {label}").odd_words() == []
    assert prompt_of(tokenizer, "{one} about {label}", label_words={"a": "ld", "b": "sports"}).odd_words() == []
    odd = prompt_of(tokenizer, "{one} wor{label}", label_words={"a": "ld", "b": "sports"})
    assert odd.odd_words() == ["ld"]
    said = [finding.says for finding in check_label_words(odd.task, tokenizer, [row_of()])]
    assert [text for text in said if "share a token" in text] == ["'ld': share a token with the text beside them"]


@pytest.mark.parametrize(
    ("settings", "record", "start"),
    [
        ({"bos_token": "<s>"}, None, "<|endoftext|>"),
        ({"bos_token": "<s>", "add_bos_token": True}, None, "<s>"),
        ({"bos_token": "<s>"}, '{"start": "<s>"}', "<s>"),
    ],
)
def test_documents_start_as_the_tokenizer_or_a_record_says(
    settings: dict[str, Any], record: str | None, start: str, backend: Backend, tmp_path: Path
) -> None:
    described = json.loads(backend.to_str())
    described["added_tokens"].append({**described["added_tokens"][0], "id": backend.get_vocab_size(), "content": "<s>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if record is not None:
        (tmp_path / ENCODING_FILE).write_text(record, encoding="utf-8")
    opened = HFTokenizer.load(tmp_path)
    assert opened.pieces([opened.bos_id]) == [start]
    other = tmp_path / "saved"
    other.mkdir()
    opened.save(other)
    (other / "manifest.json").write_text("{}", encoding="utf-8")
    again = HFTokenizer.load(other)
    assert (again.bos_id, again.digest, again.whole is None) == (opened.bos_id, opened.digest, False)
    (other / ENCODING_FILE).unlink()
    earlier = HFTokenizer.load(other)  # an artifact from before there was a record
    assert (earlier.pieces([earlier.bos_id]), earlier.whole) == (["<s>"], None)
