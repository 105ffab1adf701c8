"""A row and a label become the same tokens wherever they are needed, and only what may be cut is cut."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adapt.core.errors import ConfigError, DataError
from adapt.core.spans import (
    NO_TARGET,
    LabelForm,
    LabelLoss,
    Reading,
    Span,
    SpannedText,
    read_with_targets,
    readings_for_training,
)
from adapt.text.contract import TextTokenizer
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir, demo_dir
from pseudo_label.prompts import Prompt, parse_template
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow, labels_of, load_task
from tests.support.planted_tokenizers import EncodesOnly
from tests.support.tiny_models import ROOT

LONG = "今天天气很好我们一起去公园散步吧" * 8
WORDS = {"a": "体育", "b": "财经新闻", "c": "美食"}
BLANK = "#idiom#"


def task_with(template: str, *, shorten: list[str] | None = None, **changes: Any) -> TaskConfig:
    settings: dict[str, Any] = {
        "name": "planted",
        "fields": {"one": FieldConfig(path="one"), "two": FieldConfig(path="two")},
        "label_words": WORDS,
        "prompts": {"reference": PromptConfig(template=template)},
        "shorten": ["one", "two"] if shorten is None else shorten,
    }
    return TaskConfig(**{**settings, **changes})


def cloze_task(shorten: list[str] | None = None) -> TaskConfig:
    fields = {"content": FieldConfig(path="content", blank=BLANK)}
    return task_with("成语：{content}。", fields=fields, label_words={}, candidates="candidates", shorten=shorten or ["content"])


def row_of(one: str = "比赛", two: str = "结束了") -> TaskRow:
    return TaskRow(id=1, texts={"one": one, "two": two}, label=None, candidates=None, line=3)


def cloze_row(content: str, *candidates: str) -> TaskRow:
    return TaskRow(id=1, texts={"content": content}, label=None, candidates=candidates, line=3)


def make(task: TaskConfig, tokenizer: TextTokenizer, context: int = 96) -> Prompt:
    return Prompt(task, task.reference, tokenizer, context)


def of_kind(text: SpannedText, kind: Span) -> list[int]:
    return text.ids_T[text.kinds_T == int(kind)].tolist()


def equal(left: Reading, right: Reading) -> bool:
    names = ("inputs_T", "targets_T", "kinds_T")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)


def test_a_reading_is_the_template_filled_in_with_kinds(tokenizer: Tokenizer) -> None:
    prompt = make(task_with("{one}，{two}。主题：{label}"), tokenizer)
    text = prompt.labelled(row_of(), "b")
    assert tokenizer.decode(text.ids_T) == "比赛，结束了。主题：财经新闻"
    assert text.ids_T[0] == tokenizer.bos_id
    assert tokenizer.decode(of_kind(text, Span.CONTEXT)) == "比赛结束了"
    assert tokenizer.decode(of_kind(text, Span.PROMPT)) == "，。主题："
    assert tokenizer.decode(of_kind(text, Span.LABEL)) == "财经新闻"


@pytest.mark.parametrize("template", ["{one}{two}{label}", "{label}：{one}{two}", "{one}的{label}新闻{two}"])
@pytest.mark.parametrize("one", ["", "体", LONG])
def test_label_tokens_are_the_same_alone_and_in_place(tokenizer: Tokenizer, template: str, one: str) -> None:
    prompt = make(task_with(template), tokenizer, 40)
    for label, word in WORDS.items():
        assert of_kind(prompt.labelled(row_of(one), label), Span.LABEL) == tokenizer.encode(word)


@pytest.mark.parametrize("form", list(LabelForm))
@pytest.mark.parametrize("one", ["", "比赛", LONG])
def test_the_labelled_text_is_the_reading_that_was_scored(tokenizer: Tokenizer, form: LabelForm, one: str) -> None:
    prompt = make(task_with("{one}，{two}主题：{label}。"), tokenizer, 40)
    readings = prompt.readings(row_of(one), form)
    for label, scored in zip(WORDS, readings, strict=True):
        assert equal(read_with_targets(prompt.labelled(row_of(one), label), form, tokenizer.mask_id), scored)


def test_the_labelled_cloze_is_the_reading_that_was_scored(tokenizer: Tokenizer) -> None:
    prompt, row = make(cloze_task(), tokenizer, 30), cloze_row(f"{LONG}{BLANK}{LONG}", "画龙点睛", "狐", "守株待兔")
    for place, scored in enumerate(prompt.readings(row, LabelForm.CLM)):
        assert equal(read_with_targets(prompt.labelled(row, str(place)), LabelForm.CLM), scored)


def test_readings_and_words_come_in_the_order_of_the_labels_then_the_groups(tokenizer: Tokenizer) -> None:
    own = PromptConfig(template="{one}{label}", label_words={"c": "好吃", "b": "金融", "a": "运动", "z": "无关"})
    task = task_with("", prompts={"reference": own}, label_tree={"生活": ["a", "c"], "产业": ["b"]})
    prompt = make(task, tokenizer)
    for with_groups, words in ((False, ["运动", "金融", "好吃"]), (True, ["运动", "金融", "好吃", "生活", "产业"])):
        readings = prompt.readings(row_of(), LabelForm.CLM, with_groups=with_groups)
        assert prompt.words(row_of(), with_groups=with_groups) == words
        assert [tokenizer.decode(reading.inputs_T) for reading in readings] == [f"比赛{word}" for word in words]
    for label, word in (("a", "运动"), ("b", "金融"), ("c", "好吃")):
        assert tokenizer.decode(prompt.labelled(row_of(), label).ids_T) == f"比赛{word}"


def test_a_rows_own_candidates_are_its_words(tokenizer: Tokenizer) -> None:
    row = cloze_row(f"他{BLANK}了", "画龙点睛", "守株待兔")
    assert make(cloze_task(), tokenizer).words(row, with_groups=True) == ["画龙点睛", "守株待兔"]


@pytest.mark.parametrize("context", [20, 33, 64])
def test_only_shortenable_fields_are_cut(tokenizer: Tokenizer, context: int) -> None:
    prompt = make(task_with("题：{one}，{two}。主题{label}", shorten=["one"]), tokenizer, context)
    text = prompt.labelled(row_of(LONG), "a")
    decoded = tokenizer.decode(text.ids_T)
    assert len(text) <= context
    assert decoded.startswith("题：")
    assert decoded.endswith("，结束了。主题体育")
    kept = of_kind(text, Span.CONTEXT)[1 : -len(tokenizer.encode("结束了"))]
    assert kept == tokenizer.encode(LONG)[: len(kept)]


@pytest.mark.parametrize("context", [18, 40, 96])
def test_all_candidates_are_cut_alike_and_the_longest_fills_the_context(tokenizer: Tokenizer, context: int) -> None:
    readings = make(task_with("{one}{two}，{label}"), tokenizer, context).readings(row_of(LONG, LONG), LabelForm.CLM)
    lengths = [len(tokenizer.encode(word)) for word in WORDS.values()]
    before_label = {tuple(r.inputs_T[: len(r) - n].tolist()) for r, n in zip(readings, lengths, strict=True)}
    assert len(before_label) == 1
    assert max(len(reading) for reading in readings) == context


def test_a_text_that_fits_exactly_is_not_cut_and_one_token_less_room_cuts_one_token(tokenizer: Tokenizer) -> None:
    task = task_with("{one}，{two}{label}")
    whole = max(make(task, tokenizer, 10_000).readings(row_of(LONG), LabelForm.CLM), key=len)
    for missing in (0, 1, 5):
        cut = max(make(task, tokenizer, len(whole) - missing).readings(row_of(LONG), LabelForm.CLM), key=len)
        assert len(cut) == len(whole) - missing


def test_the_longest_field_is_cut_first_and_short_ones_stay_whole(tokenizer: Tokenizer) -> None:
    prompt = make(task_with("{one}，{two}，{label}"), tokenizer, 40)
    assert "，结束了，" in tokenizer.decode(prompt.labelled(row_of(LONG), "a").ids_T)
    both = of_kind(prompt.labelled(row_of(LONG, LONG), "b"), Span.CONTEXT)[1:]
    ids = tokenizer.encode(LONG)
    assert both in [ids[:n] + ids[: len(both) - n] for n in (len(both) // 2, len(both) - len(both) // 2)]


@pytest.mark.parametrize("shorten", [[], ["two"]])
def test_a_row_that_does_not_fit_is_refused_by_task_and_line(tokenizer: Tokenizer, shorten: list[str]) -> None:
    prompt = make(task_with("{one}，{two}{label}", shorten=shorten), tokenizer, 40)
    for render in (lambda: prompt.readings(row_of(LONG), LabelForm.CLM), lambda: prompt.labelled(row_of(LONG), "a")):
        with pytest.raises(DataError, match="task 'planted', line 3: does not fit into 40 tokens"):
            render()


def test_a_context_smaller_than_the_template_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="does not fit into 3 tokens"):
        make(task_with("{one}。这条新闻的主题是{label}"), tokenizer, 3).readings(row_of(""), LabelForm.CLM)


def test_an_empty_row_still_has_its_prompt_and_label(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(make(task_with("{one}{two}主题{label}"), tokenizer).labelled(row_of("", ""), "c").ids_T) == "主题美食"


@pytest.mark.parametrize("context", [24, 37, 60])
def test_a_cloze_keeps_the_text_around_its_blank(tokenizer: Tokenizer, context: int) -> None:
    before, after = LONG + "近在左边", "近在右边" + LONG
    prompt = make(cloze_task(), tokenizer, context)
    for text in (prompt.labelled(cloze_row(before + BLANK + after, "画龙点睛", "狐"), place) for place in "01"):
        place = np.flatnonzero(text.kinds_T == int(Span.LABEL))
        fields = text.kinds_T == int(Span.CONTEXT)
        left = text.ids_T[: place[0]][fields[: place[0]]][1:].tolist()
        right = text.ids_T[place[-1] + 1 :][fields[place[-1] + 1 :]].tolist()
        assert left == tokenizer.encode(before)[len(tokenizer.encode(before)) - len(left) :]
        assert right == tokenizer.encode(after)[: len(right)]
        assert abs(len(left) - len(right)) <= 1
        assert len(text) <= context


def test_a_cloze_fills_its_blank_with_the_candidate(tokenizer: Tokenizer) -> None:
    text = make(cloze_task(), tokenizer).labelled(cloze_row(f"他{BLANK}地等着", "守株待兔"), "0")
    assert tokenizer.decode(text.ids_T) == "成语：他守株待兔地等着。"
    assert tokenizer.decode(of_kind(text, Span.LABEL)) == "守株待兔"


def test_the_null_row_has_empty_fields_and_a_lone_blank(tokenizer: Tokenizer) -> None:
    assert make(task_with("{one}{two}{label}"), tokenizer).null_row(row_of()).texts == {"one": "", "two": ""}
    prompt, row = make(cloze_task(), tokenizer), cloze_row(f"他{BLANK}了", "画龙点睛")
    assert prompt.null_row(row).texts == {"content": BLANK}
    assert prompt.null_row(row).candidates == row.candidates
    assert tokenizer.decode(prompt.readings(prompt.null_row(row), LabelForm.CLM)[0].inputs_T) == "成语：画龙点睛。"


def test_a_text_of_the_domain_keeps_what_stands_before_its_blank_up_to_half_a_context(tokenizer: Tokenizer) -> None:
    prompt, row = make(cloze_task(), tokenizer, 40), cloze_row(f"他{BLANK}了", "画龙点睛")
    assert prompt.domain_row(row, {"content": f"她们{BLANK}地走"}).texts == {"content": f"她们{BLANK}"}
    assert prompt.domain_row(row, {"content": f"她们{BLANK}地走"}).candidates == row.candidates
    assert prompt.domain_row(row, {"content": LONG + BLANK}).texts == {"content": LONG[-20:] + BLANK}
    two = make(task_with("{one}{two}{label}"), tokenizer)
    assert two.domain_row(row_of(), {"one": "甲", "two": "乙"}).texts == {"one": "甲", "two": "乙"}


@pytest.mark.parametrize(("word", "reason"), [("体育", "labels 'a' and 'c' have the same tokens"), ("", "an empty label word")])
def test_equal_and_empty_label_words_are_refused(tokenizer: Tokenizer, word: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(task_with("{one}{label}", label_words={**WORDS, "c": word}), tokenizer)


@pytest.mark.parametrize(
    ("template", "is_first"), [("{label}：{one}", True), ("题{label}{one}", True), ("{one}{label}{two}", False)]
)
def test_a_masked_label_before_its_text_is_read_bidirectionally(tokenizer: Tokenizer, template: str, is_first: bool) -> None:
    prompt = make(task_with(template), tokenizer)
    assert prompt.is_label_first == is_first
    assert not any(reading.is_bidirectional for reading in prompt.readings(row_of(), LabelForm.CLM))
    readings = prompt.readings(row_of(), LabelForm.MLM)
    assert len(readings) == len(WORDS)
    assert all(reading.is_bidirectional == is_first for reading in readings)
    for reading, word in zip(readings, WORDS.values(), strict=True):
        is_mask = reading.inputs_T == tokenizer.mask_id
        assert tokenizer.decode(reading.targets_T[is_mask].tolist()) == word
        if is_first:
            assert (reading.targets_T[~is_mask] == NO_TARGET).all(), "next-token targets would be in sight"


def test_a_cloze_may_be_masked(tokenizer: Tokenizer) -> None:
    reading = make(cloze_task(), tokenizer).readings(cloze_row(f"他{BLANK}了", "守株待兔"), LabelForm.MLM)[0]
    assert (reading.inputs_T == tokenizer.mask_id).sum() == len(tokenizer.encode("守株待兔"))
    assert tokenizer.decode(reading.targets_T[reading.inputs_T == tokenizer.mask_id]) == "守株待兔"


def test_an_unknown_prompt_is_refused_with_what_there_is(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="task 'planted' has no prompt 'other'; it has: reference"):
        Prompt(task_with("{one}{label}"), "other", tokenizer, 96)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{one}", "exactly one place for the label, has 0"),
        ("{label}{one}{label}", "exactly one place for the label, has 2"),
        ("{tree}{label}", "unknown field 'tree'; there are: one, two"),
        ("{}{label}", "unknown field ''"),
        ("{one{label}", "prompts.reference.template"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_template(task_with(template), "reference")


def test_a_blank_and_a_label_are_two_places() -> None:
    task = replace(cloze_task(), prompts={"reference": PromptConfig(template="{content}{label}")})
    with pytest.raises(ConfigError, match="has 2"):
        parse_template(task, "reference")


def test_doubled_braces_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(make(task_with("{{{one}}}{label}"), tokenizer).labelled(row_of(), "a").ids_T) == "{比赛}体育"


class Words(EncodesOnly):
    """A tokenizer of whole words between bars that knows few of them: what it does not know is <unk>, and case is lost."""

    known = {"sports": 5, "money": 6, "food": 7, "text": 8, "topic": 9}

    def encode(self, text: str) -> list[int]:
        return [self.known.get(word.lower(), self.unk_id) for word in text.split("|") if word]


def words_task(words: dict[str, str], **changes: Any) -> TaskConfig:
    return task_with("{one}|topic|{label}", label_words=words, **changes)


def test_label_words_that_only_the_tokenizer_takes_for_the_same_are_refused() -> None:
    task = words_task({"a": "sports", "b": "food", "c": "Sports"})
    with pytest.raises(ConfigError, match="prompt 'reference': labels 'a' and 'c' have the same tokens; give them different"):
        make(task, Words())
    assert make(words_task({"a": "sports", "b": "food"}), Words()).words(row_of()) == ["sports", "food"]


def test_equal_words_of_one_prompt_are_refused_though_the_tasks_words_differ(tokenizer: Tokenizer) -> None:
    own = PromptConfig(template="{one}{label}", label_words={"a": "好", "b": "好", "c": "坏"})
    with pytest.raises(ConfigError, match="prompt 'reference': labels 'a' and 'b' have the same tokens"):
        make(task_with("", prompts={"reference": own}), tokenizer)


@pytest.mark.parametrize("word", ["opera", "sports|opera"])
def test_a_label_word_unknown_to_the_tokenizer_is_refused(word: str) -> None:
    reason = re.escape(f"task 'planted': label word '{word}' has tokens unknown to the tokenizer")
    with pytest.raises(ConfigError, match=reason):
        make(words_task({"a": "sports", "b": word}), Words())
    with pytest.raises(ConfigError, match=reason):
        make(words_task({"a": "sports", "b": "food"}, label_tree={word: ["a", "b"]}), Words())


def test_a_candidate_unknown_to_the_tokenizer_is_refused_when_its_row_is_read() -> None:
    prompt = make(cloze_task(), Words())
    with pytest.raises(ConfigError, match="label word 'opera' has tokens unknown"):
        prompt.readings(cloze_row(f"text|{BLANK}", "food", "opera"), LabelForm.CLM)


def test_unknown_words_of_a_text_are_read_as_unknown() -> None:
    prompt = make(words_task({"a": "sports", "b": "food"}), Words())
    assert prompt.labelled(row_of("opera|text"), "b").ids_T.tolist() == [2, 1, 8, 9, 7]


def swallowing(tokenizer: Tokenizer, word: str) -> str:
    """Find a text that takes part of the word into a token of its own where the two are encoded together."""
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    texts = [piece[: -len(end)] for piece in pieces for end in (word, word[0]) if len(piece) > len(end) and piece.endswith(end)]
    return next(text for text in texts if tokenizer.encode(text + word) != tokenizer.encode(text) + tokenizer.encode(word))


@pytest.mark.parametrize("word", ["好", "天", "人", "电话"])
def test_a_label_has_the_same_tokens_beside_what_it_would_merge_with(tokenizer: Tokenizer, word: str) -> None:
    before = after = swallowing(tokenizer, word)
    for template in ("{one}{label}{two}", f"{before}{{label}}{after}{{one}}{{two}}", "{two}{one}{label}"):
        task = task_with(template, label_words={"a": word, "b": "甲"})
        prompt, row = make(task, tokenizer), row_of(before, after)
        assert of_kind(prompt.labelled(row, "a"), Span.LABEL) == tokenizer.encode(word)
        reading = prompt.readings(row, LabelForm.CLM)[0]
        assert reading.targets_T[reading.kinds_T == int(Span.LABEL)].tolist() == tokenizer.encode(word)


SHIPPED = sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("context", [64, 200])
def test_shipped_prompts_train_on_the_very_reading_that_they_score(tokenizer: Tokenizer, name: str, context: int) -> None:
    task = load_task(name, [ROOT / "conf" / "task"])
    texts = {field: (f"{LONG}{spec.blank or ''}{LONG}" if field in task.shorten else "词") for field, spec in task.fields.items()}
    candidates = None if task.candidates is None else ("画龙点睛", "狐", "守株待兔")
    row = TaskRow(id=1, texts=texts, label=None, candidates=candidates, line=3)
    for prompt in (Prompt(task, prompt, tokenizer, context) for prompt in task.prompts):
        for form in LabelForm:
            is_bidirectional = form is LabelForm.MLM and prompt.is_label_first
            names = labels_of(row, task)
            for with_groups in (False, True):
                readings = prompt.readings(row, form, with_groups=with_groups)
                assert max(len(reading) for reading in readings) <= context
                for label, scored in list(zip(names, readings, strict=False))[::7]:
                    loss = LabelLoss.MLM if form is LabelForm.MLM else LabelLoss.CLM
                    trained = readings_for_training(prompt.labelled(row, label), loss, prompt.is_label_first, tokenizer.mask_id)
                    assert len(trained) == 1 + is_bidirectional
                    assert equal(trained[-1], scored)
                    assert trained[-1].is_bidirectional == scored.is_bidirectional == is_bidirectional
                n_others = with_groups * len(task.label_tree or {}) + len(task.synonyms_of(prompt.name))
                assert len(readings) == len(names) + n_others


def test_fields_are_cut_and_templates_and_other_fields_are_not_at_any_length(tokenizer: Tokenizer) -> None:
    random = np.random.default_rng(0)
    prompt = make(task_with("甲：{one}乙{two}丙{label}丁", shorten=["two"]), tokenizer, 40)
    fixed = [tokenizer.encode(part) for part in ("甲：", "比赛", "乙")]
    for _ in range(30):
        two = LONG[: int(random.integers(0, len(LONG)))]
        text = prompt.labelled(row_of(two=two), "b")
        ids, end = text.ids_T.tolist(), [i for part in ("丙", WORDS["b"], "丁") for i in tokenizer.encode(part)]
        start = [tokenizer.bos_id, *(i for part in fixed for i in part)]
        assert ids[: len(start)] == start
        assert ids[len(ids) - len(end) :] == end
        kept = ids[len(start) : len(ids) - len(end)]
        longest = max(len(tokenizer.encode(word)) for word in WORDS.values())
        room = 40 - len(start) - longest - len(end) + len(tokenizer.encode(WORDS["b"]))
        assert kept == tokenizer.encode(two)[:room]


@pytest.mark.parametrize("word", ["<mask>", "好</s>", " <unk> "])
def test_a_label_word_with_a_special_token_of_the_base_is_refused_by_name(word: str) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    tokenizer = Tokenizer.load(demo_dir() / "base")
    (mark,) = [mark for mark in tokenizer.marks if mark in word]
    plain = replace(task, label_words={**task.label_words, "Positive": word})
    with pytest.raises(ConfigError, match=rf"prompt 'reference': label word '{word}' (is|holds '{mark}',) a special token"):
        Prompt(plain, "reference", tokenizer, context_length=64)
    prompts = {"reference": replace(task.prompts["reference"], synonyms={"Negative": [word]})}
    with pytest.raises(ConfigError, match="a special token"):
        Prompt(replace(task, prompts=prompts), "reference", tokenizer, context_length=64)
