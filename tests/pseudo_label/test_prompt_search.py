"""Prompts from a file, and what unlabeled rows say of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from adapt.core.errors import ConfigError
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir
from pseudo_label.prompt_search import (
    Judgement,
    boundary_merges,
    judge,
    load_prompts,
    prompts_yaml,
)
from pseudo_label.statistics import rank_correlation
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow, load_task
from pseudo_label.zero_shot import PromptKeys
from tests.support.planted_tokenizers import EncodesOnly

Floats = npt.NDArray[np.float64]
LABELS = ("good", "bad", "mixed")


def task_of(labels: tuple[str, ...] = LABELS, /, **prompts: PromptConfig) -> TaskConfig:
    return TaskConfig(
        name="mine",
        fields={"text": FieldConfig(path="text"), "gap": FieldConfig(path="gap", blank="#")},
        label_words={label: f"词{i}" for i, label in enumerate(labels)},
        prompts=prompts or {"reference": PromptConfig(template="{text}，{label}")},
    )


def written(directory: Path, text: str) -> Path:
    path = directory / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    return path


WORDS = "{good: 好, bad: 差, mixed: 中}"


def test_templates_are_crossed_with_label_words(tmp_path: Path) -> None:
    text = f"""
- {{name: plain, label_words: {WORDS}}}
- name: says
  template: "{{text}}，{{label}}"
- name: total
  template: "{{text}}，总之{{label}}"
  label_words: [task, plain, {{good: 5, bad: 1, mixed: true}}]
- name: first
  template: "{{label}}，{{text}}"
  label_words: plain
  criterion: channel
"""
    found = load_prompts(written(tmp_path, text), task_of())
    plain = {"good": "好", "bad": "差", "mixed": "中"}
    assert found == {
        "says": PromptConfig(template="{text}，{label}"),
        "total.task": PromptConfig(template="{text}，总之{label}"),
        "total.plain": PromptConfig(template="{text}，总之{label}", label_words=plain),
        "total.3": PromptConfig(template="{text}，总之{label}", label_words={"good": "5", "bad": "1", "mixed": "true"}),
        "first": PromptConfig(template="{label}，{text}", label_words=plain, criterion="channel"),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {name: a, template: [", ["line 1", "not valid YAML"]),
        ("name: a", ["expected a list"]),
        ("[]", ["has no prompts"]),
        ("- 好", ["entry 1", "expected a mapping"]),
        ("- {template: '{text}{label}'}", ["entry 1", "name"]),
        ("- {name: a b, template: '{text}{label}'}", ["entry 1", "'a b'"]),
        ("- {name: a, template: '{text}{label}', criterio: sum}", ["entry 1 ('a')", "'criterio'", "did you mean 'criterion'"]),
        ("- {name: a, template: '{text}{label}', criterion: summ}", ["entry 1 ('a')", "'summ'", "'sum'"]),
        ("- {name: a, template: '{text}{label}'}\n- {name: a, template: '{label}{text}'}", ["entry 2 ('a')", "already"]),
        ("- {name: a, template: '{text}{label}'}\n- {name: b, template: '{text}{label}'}", ["entry 2 ('b')", "same prompt as 'a'"]),
        ("- {name: a, template: '{txt}{label}'}", ["entry 1 ('a')", "unknown field 'txt'", "text"]),
        ("- {name: a, template: '{text}'}", ["entry 1 ('a')", "exactly one place", "has 0"]),
        ("- {name: a, template: '{gap}{label}'}", ["entry 1 ('a')", "exactly one place", "has 2"]),
        ("- {name: a, template: 3}", ["entry 1 ('a')", "must be text"]),
        ("- {name: a}", ["entry 1 ('a')", "has no template"]),
        ("- {name: task, label_words: " + WORDS + "}", ["entry 1 ('task')", "already"]),
        ("- {name: a, template: '{text}{label}', label_words: plain}", ["entry 1 ('a')", "no set 'plain'", "task"]),
        ("- {name: a, template: '{text}{label}', label_words: []}", ["entry 1 ('a')", "empty list"]),
        ("- {name: a, template: '{text}{label}', label_words: {good: 好, bad: 差}}", ["'mixed' has no label word"]),
        ("- {name: a, template: '{text}{label}', label_words: {god: 好}}", ["unknown label 'god'", "did you mean 'good'"]),
        ("- {name: a, template: '{text}{label}', label_words: 3}", ["entry 1 ('a')", "expected a mapping"]),
    ],
)
def test_a_malformed_entry_is_named(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_prompts(written(tmp_path, text), task_of())
    assert "\n" not in str(error.value)
    for word in ["prompts.yaml", *words]:
        assert word in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read"):
        load_prompts(tmp_path / "nowhere.yaml", task_of())


def test_words_of_the_task_written_out_are_the_tasks_own(tmp_path: Path) -> None:
    text = (
        "- {name: a, template: '{text}{label}'}\n"
        "- {name: b, template: '{text}{label}', label_words: {mixed: 词2, good: 词0, bad: 词1}}"
    )
    with pytest.raises(ConfigError, match="same prompt as 'a'"):
        load_prompts(written(tmp_path, text), task_of())


def test_the_suggestion_can_be_pasted_into_a_task_file(tmp_path: Path) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    head = "fields: {sentence: {path: sentence}}\nlabel_words: {Negative: 不满意, Positive: 满意}\nreference: verdict\n"
    (tmp_path / "mine.yaml").write_text(head + prompts_yaml(task, ["verdict", "label_first"], "best"), encoding="utf-8")
    loaded = load_task("mine", [tmp_path])
    assert loaded.prompts == {name: task.prompts[name] for name in ("verdict", "label_first")}
    assert loaded.ensemble_names() == ["verdict", "label_first"]


def keys_of(name: str, gold: npt.NDArray[np.int64], strength: float, seed: int, bias: Floats | float = 0.0) -> PromptKeys:
    """Make a prompt whose keys hold the gold label with some strength under unit noise, and a bias for every label."""
    signal = strength * np.eye(3)[gold]
    return PromptKeys(
        prompt=name, criterion="sum", labels_NC=signal + np.random.default_rng(seed).normal(size=(len(gold), 3)) + bias
    )


def planted(strengths: list[float], bias: Floats | float = 0.0, n: int = 600) -> tuple[list[Judgement], list[float]]:
    gold = np.random.default_rng(99).permutation(np.arange(n) % 3)
    task = task_of(**{f"p{i}": PromptConfig(template="{text}{label}") for i in range(len(strengths))})
    return judge([keys_of(f"p{i}", gold, s, i, bias) for i, s in enumerate(strengths)], task), strengths


def test_prompts_that_hold_more_of_the_label_score_higher() -> None:
    found, strengths = planted([0.0, 2.5, 0.7, 1.5, 1.1])
    assert rank_correlation([j.score for j in found], strengths) == pytest.approx(1.0)
    assert [j.prompt for j in found] == ["p0", "p1", "p2", "p3", "p4"]
    for j in found:
        assert j.agreement is not None
        assert j.score == pytest.approx(j.agreement * j.confidence)


def test_a_bias_for_a_label_is_reported_and_changes_no_score() -> None:
    fair, _ = planted([0.5, 1.0, 2.0])
    biased, _ = planted([0.5, 1.0, 2.0], bias=np.asarray([0.0, 9.0, 0.0]))
    for before, after in zip(fair, biased, strict=True):
        assert after.score == pytest.approx(before.score, abs=1e-3)
        assert after.margin == pytest.approx(before.margin, abs=1e-3)
        assert before.mismatch is not None
        assert after.mismatch is not None
        assert before.mismatch < 0.05 < 0.9 < after.mismatch < math.log(3)
        assert (after.top_label, after.top_share) == ("bad", pytest.approx(1.0, abs=0.02))


def test_confidence_and_margin_do_not_depend_on_the_scale_of_a_criterion() -> None:
    gold = np.arange(90) % 3
    one = keys_of("one", gold, 1.0, 0)
    task = task_of(one=PromptConfig(template="{text}{label}"))
    large = PromptKeys(prompt="one", criterion="channel", labels_NC=37 * one.labels_NC - 500)
    (small_scale,), (large_scale,) = judge([one], task), judge([large], task)
    assert large_scale.confidence == pytest.approx(small_scale.confidence, abs=1e-6)
    assert large_scale.margin == pytest.approx(small_scale.margin, abs=1e-6)


def test_a_single_prompt_has_no_consensus() -> None:
    (only,), _ = planted([1.0])
    assert only.agreement is None
    assert only.score == only.confidence


def test_rows_with_their_own_candidates_are_judged_without_classes() -> None:
    task = load_task("chid", [conf_dir() / "task"])
    random = np.random.default_rng(0)
    keys = [PromptKeys(prompt=name, criterion="total", labels_NC=random.normal(size=(20, 7))) for name in task.prompts]
    for k in keys:
        k.labels_NC[3:6, 5:] = -np.inf
    for judgement in judge(keys, task):
        assert (judgement.mismatch, judgement.top_share, judgement.top_label) == (None, None, None)
        assert math.isfinite(judgement.score)
        assert math.isfinite(judgement.margin)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 90], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        ([1, 1, 2, 2], [1, 1, 5, 5], 1.0),
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
        ([], [], None),
    ],
)
def test_the_rank_correlation_of_known_values(first: list[float], second: list[float], expected: float | None) -> None:
    found = rank_correlation(first, second)
    assert found == (None if expected is None else pytest.approx(expected))


class Merging(EncodesOnly):
    """A tokenizer of single characters in which `很好` and `，好` are one token each."""

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            length = 2 if text[:2] in ("很好", "，好") else 1
            ids.append(hash(text[:length]))
            text = text[length:]
        return ids


def row(text: str, gap: str = "#") -> TaskRow:
    return TaskRow(id=0, texts={"text": text, "gap": gap}, label=None, candidates=None, line=1)


@pytest.mark.parametrize(
    ("template", "texts", "expected"),
    [
        ("{text}，{label}", ["书"], ["好"]),
        ("{text}。{label}", ["书"], []),
        ("{label}，{text}", ["书"], []),
        ("{text}{label}", ["书", "也很", "笔"], ["好"]),
        ("{text}{label}", ["书", "笔"], []),
        ("很{gap}", ["书"], ["好"]),
    ],
)
def test_label_words_that_merge_with_the_text_before_them_are_found(template: str, texts: list[str], expected: list[str]) -> None:
    task = task_of(("good", "bad"), reference=PromptConfig(template=template, label_words={"good": "好", "bad": "差"}))
    merged = boundary_merges(task, "reference", Merging(), [row(text) for text in texts])
    assert merged == (expected, 2)


def test_a_real_tokenizer_merges_across_a_boundary(tokenizer: Tokenizer) -> None:
    pieces = [
        p for p in tokenizer.pieces(range(tokenizer.vocab_size)) if len(p) == 2 and p.isalpha() and tokenizer.encode(p)[1:] == []
    ]
    before, word = list(pieces[0])
    task = task_of(
        ("good", "bad"), reference=PromptConfig(template=f"{{text}}{before}{{label}}", label_words={"good": word, "bad": "!"})
    )
    assert word in boundary_merges(task, "reference", tokenizer, [row("")])[0]
