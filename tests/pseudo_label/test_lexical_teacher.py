"""The labeller without a model: seeds by label words, self-training, rows with candidates of their own, and its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.core.errors import CheckpointError
from adapt.core.scorer import FloatArray
from pseudo_label.lexical_config import LexicalConfig, Measure, RuleConfig
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow, labels_of
from pseudo_label.teachers import lexical_files
from pseudo_label.teachers.bag_of_words import Unit, unit_of
from pseudo_label.teachers.lexical import FittedLexical, fit_lexical, surest_of_each

# Words of two subjects; only the first of each is a label word, the others are learnt from standing beside it.
SUBJECTS = {"ball": ["足球", "射门", "守门员", "联赛", "球迷"], "money": ["银行", "贷款", "利率", "存款", "债券"]}


def task_of(**changes: Any) -> TaskConfig:
    settings: dict[str, Any] = {
        "name": "subjects",
        "fields": {"text": FieldConfig(path="text")},
        "label_words": {"ball": "足球", "money": "银行"},
        "prompts": {"reference": PromptConfig(template="{text}。{label}")},
    }
    return TaskConfig(**{**settings, **changes})


def row(text: str, line: int = 1, label: str | None = None, candidates: tuple[str, ...] | None = None) -> TaskRow:
    return TaskRow(id=line, texts={"text": text}, label=label, candidates=candidates, line=line)


def rows_of(seed: int, count: int) -> list[TaskRow]:
    """Make texts of three words of one subject between words that say nothing; four in ten have the label word."""
    random = np.random.default_rng(seed)
    made = []
    for line in range(1, count + 1):
        label = str(random.choice(list(SUBJECTS)))
        words = random.choice(SUBJECTS[label][1:], 2, replace=False).tolist()
        words += [SUBJECTS[label][0]] if random.random() < 0.4 else ["今天"]
        random.shuffle(words)
        made.append(row("，".join([*words, str(random.choice(["消息", "报道", "情况"]))]), line, label))
    return made


def accuracy(scores_NC: FloatArray, rows: list[TaskRow], task: TaskConfig) -> float:
    gold = [labels_of(r, task).index(r.label or "") for r in rows]
    return float((scores_NC.argmax(axis=1) == gold).mean())


def test_words_beside_label_words_are_learnt() -> None:
    task, unlabeled = task_of(), rows_of(0, 300)
    fitted = lexical_files.fit(task, unlabeled, seed=0)
    without_label_words = [row(r.texts["text"].replace("足球", "").replace("银行", ""), r.line, r.label) for r in rows_of(1, 200)]
    assert accuracy(fitted.scores(without_label_words), without_label_words, task) > 0.95


def test_scores_are_centred_and_of_unit_spread_over_the_unlabeled_rows() -> None:
    unlabeled = rows_of(0, 200)
    scores = lexical_files.fit(task_of(), unlabeled, seed=0).scores(unlabeled)
    np.testing.assert_allclose(scores.sum(axis=1), 0, atol=1e-9)
    assert scores.std() == pytest.approx(1, abs=1e-6)


def test_a_row_is_scored_alike_whatever_stands_beside_it_and_whatever_its_label() -> None:
    fitted = lexical_files.fit(task_of(), rows_of(0, 100), seed=0)
    asked = rows_of(2, 5)
    together = fitted.scores(asked)
    alone = np.concatenate([fitted.scores([row(r.texts["text"], r.line, None)]) for r in asked])
    np.testing.assert_array_equal(together, alone)
    assert fitted.scores([]).shape == (0, 2)


def test_labels_that_no_row_seems_to_have_end_in_no_error() -> None:
    task = task_of(label_words={"ball": "足球", "money": "银行", "rare": "海啸"})
    fitted = lexical_files.fit(task, rows_of(0, 60), seed=0)
    assert np.isfinite(fitted.scores(rows_of(1, 5))).all()


@pytest.mark.parametrize("texts", [["足球"], ["足球", "足球"], ["完全无关", "什么都不是", "嗯"]])
def test_few_or_strange_rows_end_in_no_error(texts: list[str]) -> None:
    unlabeled = [row(text, line) for line, text in enumerate(texts, 1)]
    assert np.isfinite(lexical_files.fit(task_of(), unlabeled, seed=0).scores(unlabeled)).all()


def test_what_was_fitted_is_the_same_from_its_files(tmp_path: Path) -> None:
    for task, unlabeled in ((task_of(), rows_of(0, 120)), (cloze_task(), cloze_rows(0, 80))):
        fitted = lexical_files.fit(task, unlabeled, seed=0)
        lexical_files.save(tmp_path, fitted)
        np.testing.assert_array_equal(lexical_files.load(tmp_path, task).scores(unlabeled), fitted.scores(unlabeled))


def test_files_that_were_fitted_under_another_order_of_labels_give_each_label_its_scores(tmp_path: Path) -> None:
    rule = RuleConfig(measure=Measure.WORDS, fields=["text"], words=["足球"], weights={"ball": 1.0})
    settings: list[dict[str, Any]] = [{}, {"rules": [rule], "lexical": LexicalConfig(uses_words=False, rounds=0)}]
    for own in settings:
        task, unlabeled = task_of(**own), rows_of(0, 120)
        fitted = lexical_files.fit(task, unlabeled, seed=0)
        lexical_files.save(tmp_path, fitted)
        turned = replace(task, label_words=dict(reversed(task.label_words.items())))
        np.testing.assert_allclose(lexical_files.load(tmp_path, turned).scores(unlabeled), fitted.scores(unlabeled)[:, ::-1])


@pytest.mark.parametrize("changes", [{"label_words": {"ball": "足球"}}, {"fields": {"title": FieldConfig(path="text")}}])
def test_files_that_were_fitted_for_other_labels_or_fields_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    lexical_files.save(tmp_path, lexical_files.fit(task_of(), rows_of(0, 50), seed=0))
    with pytest.raises(CheckpointError, match="another version of task 'subjects'"):
        lexical_files.load(tmp_path, task_of(**changes))


def test_files_that_name_no_labels_are_read_from_exports_only(tmp_path: Path) -> None:
    fitted = lexical_files.fit(task_of(), rows_of(0, 50), seed=0)
    lexical_files.save(tmp_path, fitted)
    place = tmp_path / lexical_files.LEXICAL_FILE
    plain = json.loads(place.read_text(encoding="utf-8"))
    del plain["labels"], plain["fields"]
    place.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(CheckpointError, match="labels"):
        lexical_files.load(tmp_path, task_of())
    again = lexical_files.load(tmp_path, task_of(), may_be_unnamed=True)
    np.testing.assert_array_equal(again.scores(rows_of(1, 5)), fitted.scores(rows_of(1, 5)))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    lexical_files.save(tmp_path, lexical_files.fit(task_of(), rows_of(0, 50), seed=0))
    (tmp_path / lexical_files.LEXICAL_ARRAYS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        lexical_files.load(tmp_path, task_of())


def test_a_guide_is_learnt_instead_of_the_label_words() -> None:
    task, unlabeled = task_of(), rows_of(0, 200)
    turned = np.asarray([[0.0, 1.0] if r.label == "ball" else [1.0, 0.0] for r in unlabeled])
    fitted = lexical_files.fit(task, unlabeled, seed=0, guide_NC=turned)
    assert accuracy(fitted.scores(unlabeled), unlabeled, task) < 0.05


def test_a_lesson_adds_to_what_was_known_or_replaces_it() -> None:
    task, unlabeled = task_of(), rows_of(0, 200)
    known = lexical_files.fit(task, unlabeled, seed=0)
    turned = np.asarray([[0.0, 1.0] if r.label == "ball" else [1.0, 0.0] for r in unlabeled])
    lesson = lexical_files.fit(task, unlabeled, seed=0, guide_NC=turned)
    anew = lexical_files.teach(known, unlabeled, 0, turned, keeps=False)
    np.testing.assert_array_equal(anew.scores(unlabeled), lesson.scores(unlabeled))
    both = lexical_files.teach(known, unlabeled, 0, turned, keeps=True)
    assert isinstance(known, FittedLexical) and isinstance(both, FittedLexical)
    once = fit_lexical(task, unlabeled, 0, turned, rounds=1)
    wanted = known.scores(unlabeled) + once.scores(unlabeled)
    np.testing.assert_allclose(both.scores(unlabeled), wanted / wanted.std() * both.scores(unlabeled).std(), rtol=0.02, atol=0.02)


def test_the_surest_rows_are_the_same_number_of_each_label() -> None:
    scores = np.asarray([[3.0, 0], [2.0, 0], [1.0, 0], [0.5, 0], [0, 0.1], [0, 0.2]])
    assert surest_of_each(scores, 0.3).tolist() == [0, 5]
    assert surest_of_each(scores, 1.0).tolist() == [0, 1, 2, 3, 4, 5]


def test_units_follow_the_script_and_english_is_labelled_by_words() -> None:
    assert unit_of(["今天天气很好", "你好"]) is Unit.CHARACTERS
    assert unit_of(["the weather is fine", "hello"]) is Unit.WORDS
    assert unit_of([]) is Unit.CHARACTERS
    task = task_of(label_words={"sports": "football", "money": "bank"})
    texts = ["the football match", "a football goal match", "the bank loan", "a bank loan rate"] * 10
    unlabeled = [row(text, line) for line, text in enumerate(texts, 1)]
    asked = [row("match goal", 1, "sports"), row("loan rate", 2, "money")]
    assert accuracy(lexical_files.fit(task, unlabeled, seed=0).scores(asked), asked, task) == 1


def cloze_task() -> TaskConfig:
    return TaskConfig(
        name="cloze",
        fields={"text": FieldConfig(path="text", blank="#")},
        candidates="candidates",
        prompts={"reference": PromptConfig(template="{text}")},
        lexical=LexicalConfig(),
    )


def cloze_rows(seed: int, count: int) -> list[TaskRow]:
    """Make texts of one subject whose right candidate is a word of that subject and the other one of the other subject."""
    random = np.random.default_rng(seed)
    made = []
    for line in range(1, count + 1):
        names = list(SUBJECTS)
        right = int(random.integers(2))
        words = [str(random.choice(SUBJECTS[name])) for name in names]
        around = random.choice([w for w in SUBJECTS[names[right]] if w != words[right]], 3, replace=False).tolist()
        made.append(row("，".join(around) + "，#", line, str(right), tuple(words)))
    return made


def test_candidates_are_known_by_the_texts_they_fit() -> None:
    task = cloze_task()
    fitted = lexical_files.fit(task, cloze_rows(0, 400), seed=0)
    asked = cloze_rows(1, 100)
    assert accuracy(fitted.scores(asked), asked, task) > 0.8
    unknown = row("足球，射门，#", 1, None, ("没见过的", "也没见过", "第三个"))
    assert fitted.scores([unknown]).shape == (1, 3)


def test_rows_of_fewer_candidates_have_no_score_for_the_missing_ones() -> None:
    fitted = lexical_files.fit(cloze_task(), cloze_rows(0, 50), seed=0)
    scores = fitted.scores([row("足球，#", 1, None, ("射门", "利率", "存款")), row("银行，#", 2, None, ("射门", "利率"))])
    assert scores.shape == (2, 3)
    assert np.isfinite(scores).tolist() == [[True, True, True], [True, True, False]]
