"""Rules, files of labels and embeddings as teachers, and how teachers are weighed without labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.core.errors import ConfigError, DataError
from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray
from adapt.text.rows.contract import Quotes
from pseudo_label.lexical_config import LexicalConfig, Measure, RuleConfig
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow, load_task
from pseudo_label.teachers import lexical_files
from pseudo_label.teachers.contract import row_centred, spread_of
from pseudo_label.teachers.embedding import fit_embedding
from pseudo_label.teachers.file import read_label_file
from pseudo_label.teachers.label_model import are_told, estimated_accuracies, fit_combination, labels_of_a_row
from pseudo_label.teachers.rules import FittedRules, fit_rules


def pair_task(*rules: RuleConfig, **changes: Any) -> TaskConfig:
    settings: dict[str, Any] = {
        "name": "pairs",
        "fields": {"one": FieldConfig(path="one"), "two": FieldConfig(path="two")},
        "label_words": {"0": "不同", "1": "相同"},
        "prompts": {"reference": PromptConfig(template="{one}，{two}{label}")},
        "rules": list(rules),
        "lexical": LexicalConfig(uses_words=False, rounds=0),
    }
    return TaskConfig(**{**settings, **changes})


def pair(one: str, two: str, line: int = 1) -> TaskRow:
    return TaskRow(id=line, texts={"one": one, "two": two}, label=None, candidates=None, line=line)


OVERLAP = RuleConfig(measure=Measure.OVERLAP, fields=["one", "two"], weights={"1": 1.0, "0": -1.0})
PAIRS = [pair("今天很冷", "今天冷吗"), pair("我要退货", "怎么退货"), pair("你好", "明天见"), pair("花很香", "车很快")]


def test_overlap_over_the_median_speaks_for_its_label() -> None:
    scores = fit_rules(pair_task(OVERLAP), PAIRS).scores(PAIRS)
    assert scores.argmax(axis=1).tolist() == [1, 1, 0, 0]
    assert spread_of(scores) == pytest.approx(1)


def test_words_count_only_where_no_other_field_of_the_rule_has_them() -> None:
    rule = RuleConfig(measure=Measure.WORDS, fields=["one", "two"], words=["不"], weights={"0": 2.0})
    rows = [pair("他来", "他不来"), pair("他不来", "他不在"), pair("他来", "他在")]
    scores = fit_rules(pair_task(rule), rows).scores(rows)
    assert scores[0, 0] > scores[1, 0]
    np.testing.assert_array_equal(scores[1], scores[2])


@pytest.mark.parametrize(
    ("settings", "high", "low"),
    [
        ({"measure": Measure.PATTERN, "fields": ["two"], "pattern": "^[0-9]+$"}, ("", "123"), ("", "12a")),
        ({"measure": Measure.LENGTH, "fields": ["two"]}, ("", "长长长长"), ("", "短")),
        ({"measure": Measure.SHORTEST_ITEM, "fields": ["two"]}, ("", "长词语、更长的词"), ("", "词、更长的词语")),
        ({"measure": Measure.OVERLAP, "fields": ["one", "two"], "is_directed": True}, ("甲乙丙", "甲乙"), ("甲", "乙")),
    ],
)
def test_each_measure_speaks_for_its_label(settings: dict[str, Any], high: tuple[str, str], low: tuple[str, str]) -> None:
    rows = [pair(*high), pair(*low)]
    scores = fit_rules(pair_task(RuleConfig(**settings, weights={"1": 1.0})), rows).scores(rows)
    assert scores[0, 1] > scores[1, 1]


def test_fitted_rules_are_the_same_from_plain_values() -> None:
    task = pair_task(OVERLAP)
    fitted = fit_rules(task, PAIRS)
    again = FittedRules.from_plain(json.loads(json.dumps(fitted.to_plain())), task, [0, 1])
    np.testing.assert_array_equal(again.scores(PAIRS), fitted.scores(PAIRS))


def test_a_task_whose_rules_are_its_only_seeds_is_labelled_by_them() -> None:
    task = pair_task(OVERLAP)
    np.testing.assert_array_equal(lexical_files.fit(task, PAIRS, 0).scores(PAIRS), fit_rules(task, PAIRS).scores(PAIRS))


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("uses_words", [True, False])
def test_rules_count_where_nothing_is_learnt_from_them(rounds: int, uses_words: bool) -> None:
    task = pair_task(OVERLAP, lexical=LexicalConfig(uses_words=uses_words, rounds=rounds))
    one_label = [pair("你好", "你好", line) for line in range(4)]
    for rows in (PAIRS, one_label):
        scores = lexical_files.fit(task, rows, 0).scores(rows)
        assert scores.shape == (4, 2) and np.isfinite(scores).all()
    if rounds == 0:
        assert lexical_files.fit(task, PAIRS, 0).scores(PAIRS).argmax(axis=1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: [{measure: overlap, fields: [one], weights: {1: 1.0}}]", ["rules[0].fields", "two fields"]),
        ("rules: [{measure: overlap, fields: [one, three], weights: {1: 1.0}}]", ["no field 'three'"]),
        ("rules: [{measure: words, fields: [one], weights: {1: 1.0}}]", ["rules[0].words"]),
        ("rules: [{measure: pattern, fields: [one], pattern: '(', weights: {1: 1.0}}]", ["not a regular expression"]),
        ("rules: [{measure: pattern, fields: [one], weights: {1: 1.0}}]", ["rules[0].pattern", "missing"]),
        ("rules: [{measure: length, fields: [one], weights: {2: 1.0}}]", ["unknown label '2'"]),
        ("rules: [{measure: size, fields: [one], weights: {1: 1.0}}]", ["measure"]),
        ("lexical: {uses_words: false}", ["nothing to label by"]),
        ("lexical: {share: 0}", ["share"]),
        ("lexical: {unit: letters}", ["letters", "characters"]),
    ],
)
def test_broken_rules_are_refused_with_the_task(tmp_path: Path, text: str, words: list[str]) -> None:
    head = "fields: {one: {path: one}, two: {path: two}}\nlabel_words: {0: 不同, 1: 相同}\n"
    head += 'prompts: {reference: {template: "{one}{two}{label}"}}\n'
    (tmp_path / "own.yaml").write_text(head + text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_task("own", [tmp_path])
    assert all(word in str(refusal.value) for word in words)


def file_of(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    return path


def test_a_file_of_labels_is_joined_by_id_or_by_texts_and_leaves_other_rows_open(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"id": 1, "label": 1}, {"one": "你", "two": "我", "probabilities": {"0": 0.9, "1": 0.1}})
    rows = [pair("甲", "乙", 1), pair("你", "我", 7), pair("丙", "丁", 3)]
    teacher = read_label_file(path, pair_task(OVERLAP)).fitted(rows)
    scores = teacher.scores(rows)
    assert scores[:2].argmax(axis=1).tolist() == [1, 0]
    assert scores[2].tolist() == [0, 0]
    assert teacher.coverage(rows) == pytest.approx(2 / 3)
    assert spread_of(scores[:2]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"id": 1, "label": "2"}, ["line 2", "label '2' has no label word"]),
        ({"id": 1}, ["line 2", "neither a label"]),
        ({"label": "1"}, ["line 2", "names no row"]),
        ({"id": 0, "label": "1"}, ["line 2", "named before"]),
        ({"id": 1, "probabilities": {"1": 3}}, ["line 2", "between 0 and 1"]),
        ({"id": 1, "label": ["1"]}, ["line 2", "neither a label"]),
    ],
)
def test_a_broken_file_of_labels_is_refused_by_line(tmp_path: Path, line: object, words: list[str]) -> None:
    path = file_of(tmp_path, {"id": 0, "label": "0"}, line)
    with pytest.raises(DataError) as refusal:
        read_label_file(path, pair_task(OVERLAP))
    assert all(word in str(refusal.value) for word in words)


def test_rows_of_other_splits_are_found_by_their_texts_only(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {"id": 1, "one": "甲", "two": "乙", "label": "1"},
        {"id": 2, "label": "1"},
        {"id": 3, "one": "丙", "two": "丁", "label": "0"},
        {"id": 4, "one": "丙", "two": "丁", "label": "1"},
    )
    elsewhere = read_label_file(path, pair_task(OVERLAP)).of_other_splits()
    scores = elsewhere.scores([pair("甲", "乙", 9), pair("戊", "己", 2), pair("丙", "丁", 3)])
    assert scores[0].argmax() == 1
    assert not scores[1].any(), "an id of another split"
    assert not scores[2].any(), "a text with two labels"


def test_an_id_whose_row_has_another_text_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"id": 1, "one": "甲 ", "two": "乙", "label": "1"}, {"id": 2, "one": "甲", "two": "乙", "label": "1"})
    teacher = read_label_file(path, pair_task(OVERLAP))
    teacher.fitted([pair("甲", "乙", 1)])
    with pytest.raises(DataError, match=r"labels\.jsonl, line 2: has the id 2 of the unlabeled row in line 2, and another text"):
        teacher.fitted([pair("丙", "丁", 2)])


def test_a_file_of_labels_is_read_as_the_task_s_files_are(tmp_path: Path) -> None:
    """In their encoding, with quotes as letters, ids called as in the rows, and texts in the columns of the task's file."""
    path, fields = tmp_path / "labels.csv", {"one": FieldConfig(path="標題"), "two": FieldConfig(path="內文")}
    path.write_text('ID,標題,內文,label\n1,"很好,乙,1\n,丙,丁,0\n', encoding="big5")
    task = pair_task(OVERLAP, fields=fields, encoding="big5", quotes=Quotes.TEXT)
    rows = [pair('"很好', "乙", 1), pair("丙", "丁", 7)]
    assert read_label_file(path, task).fitted(rows).scores(rows).argmax(axis=1).tolist() == [1, 0]


def test_a_missing_file_of_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_label_file(tmp_path / "none.jsonl", pair_task(OVERLAP))


def test_embeddings_learn_from_the_nearest_label_words_and_from_a_guide() -> None:
    task = pair_task(label_words={"0": "天", "1": "地"}, lexical=LexicalConfig())

    def encode(texts: Sequence[str]) -> FloatArray:
        """Give each text the share of two characters, and a direction that says nothing."""
        return np.asarray([[t.count("天") + t.count("云"), t.count("地") + t.count("土"), 5.0 + len(t) % 3] for t in texts], float)

    random = np.random.default_rng(0)
    rows = [pair(str(random.choice(["天", "云"] if i % 2 else ["地", "土"])), "。" * int(random.integers(3)), i) for i in range(40)]
    wanted = np.asarray([0 if i % 2 else 1 for i in range(40)])
    fitted, scores = fit_embedding(task, rows, encode, seed=0)
    assert (scores.argmax(axis=1) == wanted).all()
    np.testing.assert_allclose(fitted.scores(rows), scores)
    _, turned = fit_embedding(task, rows, encode, seed=0, guide_NC=-scores)
    assert (turned.argmax(axis=1) == 1 - wanted).all()


def simulated(accuracies: dict[str, float], n: int, n_labels: int) -> tuple[dict[str, FloatArray], IntArray]:
    """Make teachers with independent errors whose margin grows with how often such an answer is right."""
    random = np.random.default_rng(0)
    gold = random.integers(n_labels, size=n)
    views = {}
    for name, accuracy in accuracies.items():
        sure = random.random(n)
        # Linear in sureness, with the accuracy as its mean and as far from chance as both allow.
        slope = min(accuracy - 1 / n_labels, 1 - accuracy)
        is_right = random.random(n) < accuracy + slope * (2 * sure - 1)
        wrong = (gold + random.integers(1, n_labels, size=n)) % n_labels
        scores = np.zeros((n, n_labels))
        scores[np.arange(n), np.where(is_right, gold, wrong)] = 0.1 + sure
        views[name] = row_centred(scores) / spread_of(scores)
    return views, gold


@pytest.mark.parametrize("n_labels", [2, 15])
def test_estimates_rank_teachers_as_their_accuracies_do(n_labels: int) -> None:
    true = {"good": 0.85, "middle": 0.7, "bad": 0.55}
    views, gold = simulated(true, 4000, n_labels)
    estimates = estimated_accuracies(views)
    assert sorted(estimates, key=estimates.__getitem__) == ["bad", "middle", "good"]
    assert all(abs(estimates[name] - true[name]) < 0.12 for name in true)
    together = fit_combination(views).apply(views)
    best = (views["good"].argmax(axis=1) == gold).mean()
    assert (together.argmax(axis=1) == gold).mean() > best


def test_of_two_teachers_the_better_one_weighs_more() -> None:
    views, _ = simulated({"good": 0.85, "weak": 0.65}, 4000, 2)
    estimates = estimated_accuracies(views)
    assert estimates["good"] == pytest.approx(0.85, abs=0.1)
    assert estimates["weak"] == pytest.approx(0.65, abs=0.05)
    weights = fit_combination(views).weights
    assert weights["good"] > 1.5 * weights["weak"] > 0
    assert are_told(estimates, labels_of_a_row(views))


def test_beside_a_teacher_at_chance_nothing_is_known_of_the_other() -> None:
    views, _ = simulated({"good": 0.85, "chance": 0.5}, 4000, 2)
    weights = fit_combination(views).weights
    assert 0.4 < weights["good"] / weights["chance"] < 2.5
    assert not are_told(estimated_accuracies(views), labels_of_a_row(views))


def test_given_weights_are_taken_and_the_sum_has_unit_spread_before_it_is_sharpened() -> None:
    views, _ = simulated({"a": 0.8, "b": 0.6}, 500, 3)
    combination = fit_combination(views, {"a": 3.0})
    assert combination.weights == {"a": 1.5, "b": 0.5}
    assert spread_of(combination.apply(views)) == pytest.approx(combination.sharpness)


def test_one_teacher_or_no_row_has_no_estimate() -> None:
    views, _ = simulated({"only": 0.8}, 50, 2)
    assert estimated_accuracies(views) == {}
    empty = {name: np.empty((0, 2)) for name in ("a", "b")}
    assert fit_combination(empty).apply(empty).shape == (0, 2)
