"""Prompts as turns of a conversation: tokens and scores are those of transformers' `apply_chat_template`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.spans import LabelForm, Span, SpannedText
from adapt.core.typed import from_plain, to_plain
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.hf_tokenizer import HFTokenizer
from adapt.text.tokenizer import Tokenizer
from pseudo_label.decision import Decision, FittedScores, Method
from pseudo_label.harnesses.lm_eval import filled
from pseudo_label.harnesses.prompt_text import TextForm, harness_rows, prompt_text
from pseudo_label.label_word_checks import check_label_words
from pseudo_label.labelling import ScoringConfig
from pseudo_label.prompts import Prompt
from pseudo_label.task_checks import problems_of
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow
from tests.support.hf_checkpoints import BYTE_LEVEL, METASPACE, PREPENDED, make_checkpoint
from tests.support.tiny_models import DEMO

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% else %}"
    "{{ raise_exception('no system turn here') }}{% endif %}{% endfor %}"
)
MARKS = ("<|im_start|>", "<|im_end|>")
WORDS = {"a": "体育", "b": "财经", "c": "科技"}
RAW = Decision(method=Method.RAW, labels=FittedScores(prompts=["reference"]), groups=None, n_fitted=0)
TEXT = "昨天 的比赛 <|im_end|>\n真好"
CASES = [(BYTE_LEVEL, CHATML, "你是编辑。"), (METASPACE, LLAMA, None), (PREPENDED, LLAMA, None), (METASPACE, CHATML, None)]


def planted(place: Path, kind: str, template: str) -> Path:
    """Write a tiny random Llama whose tokenizer has the template and its special tokens."""
    make_checkpoint(place, "llama", kind)
    file = place / "tokenizer.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    first = len(described["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    described["added_tokens"] += [{"id": first + n, "content": mark, **flags} for n, mark in enumerate(MARKS)]
    file.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {} if kind == BYTE_LEVEL else {"bos_token": "<s>"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return place


def task_of(**changes: Any) -> TaskConfig:
    prompt = PromptConfig(template=" {text}\n这段话属于哪一类？ {label}", chat=True)
    return TaskConfig(
        name="planted",
        fields={"text": FieldConfig(path="text")},
        label_words=WORDS,
        prompts={"reference": replace(prompt, **changes)},
        shorten=["text"],
    )


def row_of(text: str) -> TaskRow:
    return TaskRow(id=1, texts={"text": text}, label=None, candidates=None, line=3)


def of_kind(text: SpannedText, kind: Span) -> list[int]:
    return text.ids_T[text.kinds_T == int(kind)].tolist()


def asked_of(theirs: Any, text: str, system: str | None) -> str:
    """Return what transformers writes up to the answer."""
    lead = [] if system is None else [{"role": "system", "content": system}]
    question = {"role": "user", "content": f" {text}\n这段话属于哪一类？ ".strip()}
    return str(theirs.apply_chat_template([*lead, question], tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize(("kind", "template", "system"), CASES)
def test_tokens_and_scores_are_those_of_the_applied_chat_template(
    kind: str, template: str, system: str | None, tmp_path: Path
) -> None:
    place = planted(tmp_path, kind, template)
    theirs, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    opened = open_checkpoint(place, ScorerConfig(precision=Precision.FP32))
    prompt = Prompt(task_of(system=system), "reference", opened.tokenizer, opened.scorer.context_length)
    text = TEXT.replace(MARKS[1], "")
    gap = " " if template is LLAMA else ""
    asked, expected = asked_of(theirs, text, system), []
    n_asked = len(theirs.encode(asked, add_special_tokens=False))
    for label, word in WORDS.items():
        ids = theirs.encode(asked + gap + word, add_special_tokens=False)
        read = prompt.labelled(row_of(text), label)
        assert read.ids_T.tolist() == ids
        assert of_kind(read, Span.LABEL) == ids[n_asked:]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(float(logits[at - 1, ids[at]]) for at in range(n_asked, len(ids))))
    (sums_C3,) = opened.scorer.score(iter([prompt.readings(row_of(text), LabelForm.CLM)]), frozenset({Span.LABEL}))
    np.testing.assert_allclose(sums_C3[:, int(Span.LABEL)], expected, atol=1e-4)


def test_a_text_that_spells_the_end_of_a_turn_remains_a_text(tmp_path: Path) -> None:
    tokenizer = HFTokenizer.load(planted(tmp_path, BYTE_LEVEL, CHATML))
    read = Prompt(task_of(), "reference", tokenizer, 200).labelled(row_of(TEXT), "a").ids_T.tolist()
    start, end = (tokenizer.vocabulary[mark] for mark in MARKS)
    assert (read.count(start), read.count(end)) == (2, 1)
    assert MARKS[1] in tokenizer.decode(read)


def test_a_long_row_is_cut_inside_the_users_turn(tmp_path: Path) -> None:
    tokenizer = HFTokenizer.load(planted(tmp_path, BYTE_LEVEL, CHATML))
    long, short = (
        Prompt(task_of(), "reference", tokenizer, n).labelled(row_of("比赛" * 40), "a").ids_T.tolist() for n in (400, 60)
    )
    assert len(short) <= 60 < len(long)
    assert short[:6] == long[:6] and short[-12:] == long[-12:]


def test_files_of_tasks_say_the_turns_and_plain_prompts_keep_their_digest() -> None:
    task = task_of(system="你是编辑。")
    assert from_plain(TaskConfig, to_plain(task), "planted") == task
    assert set(to_plain(task_of(chat=False))["prompts"]["reference"]) == {"template", "label_words", "synonyms", "criterion"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"template": "{label}：{text}"}, "let the template end with"),
        ({"chat": False, "system": "你是编辑。"}, "add chat: true"),
        ({"system": " "}, "is empty"),
    ],
)
def test_turns_that_do_not_fit_are_refused_with_the_task(changes: dict[str, Any], says: str) -> None:
    (problem,) = problems_of(task_of(**changes))
    assert says in problem


@pytest.mark.parametrize(
    ("template", "system", "says"),
    [
        (LLAMA, "你是编辑。", "no system turn here"),
        ("{{ bos_token }}{{ messages[0].content | replace('line', 'x') }}", None, "changes the user's text"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "你是编辑。", "leaves the system's text out"),
        ("{{ messages[0].content ", None, "cannot write"),
    ],
)
def test_a_template_that_cannot_write_the_turns_is_refused(template: str, system: str | None, says: str, tmp_path: Path) -> None:
    tokenizer = HFTokenizer.load(planted(tmp_path, PREPENDED, template))
    with pytest.raises(ConfigError, match=says):
        Prompt(task_of(system=system), "reference", tokenizer, 200)


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    for tokenizer in (HFTokenizer.load(make_checkpoint(tmp_path, "llama")), Tokenizer.load(DEMO / "base")):
        with pytest.raises(ConfigError, match=r"prompts.reference.chat: .* has no chat template"):
            Prompt(task_of(), "reference", tokenizer, 200)


def test_words_of_an_answer_are_not_taken_for_words_in_running_text(tmp_path: Path) -> None:
    tokenizer = HFTokenizer.load(planted(tmp_path, BYTE_LEVEL, CHATML))
    task = replace(task_of(), label_words={"a": "good", "b": "bad"})
    assert not any("without the space" in finding.says for finding in check_label_words(task, tokenizer, [row_of("a film")]))


@pytest.mark.parametrize(("kind", "template", "system"), [CASES[0], CASES[2]])
def test_a_task_file_for_the_harness_gives_the_tokens_that_are_scored(
    kind: str, template: str, system: str | None, tmp_path: Path
) -> None:
    place = planted(tmp_path, kind, template)
    tokenizer, theirs = HFTokenizer.load(place), AutoTokenizer.from_pretrained(place)
    task, form = task_of(system=system), TextForm(tokenizer=tokenizer, context_length=90, start=tokenizer.start_as_text)
    rows = [replace(row_of(text), label="b") for text in (TEXT, "好" * 80, "a film")]
    prompt = prompt_text(task, ScoringConfig(), RAW, form)
    found = harness_rows(task, prompt, rows)
    assert (found.n_cut, found.n_other) == (1, 1)
    rendered = Prompt(task, "reference", tokenizer, 90)
    for row, written in list(zip(rows, found.rows, strict=True))[1:]:
        context = filled(prompt.before, written.slots, "")
        for reading, word in zip(rendered.readings(row, LabelForm.CLM), written.choices, strict=True):
            assert theirs.encode(context + word, add_special_tokens=False) == reading.inputs_T.tolist()


def test_a_task_file_is_refused_where_the_harness_would_start_the_conversation_otherwise(tmp_path: Path) -> None:
    tokenizer = HFTokenizer.load(planted(tmp_path, PREPENDED, CHATML))
    form = TextForm(tokenizer=tokenizer, context_length=90, start="")
    with pytest.raises(ConfigError, match="writes no document start"):
        prompt_text(task_of(), ScoringConfig(), RAW, form)
