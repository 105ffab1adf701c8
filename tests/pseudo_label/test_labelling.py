"""Scoring and deciding for a task: methods fitted through one scorer, on a real tiny model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adapt.core.spans import LabelForm
from adapt.model.gpt import GPT
from adapt.scoring.scorer_config import ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.decision import Method, softmax
from pseudo_label.labelling import CONTENT_FREE_TEXTS, ScoringConfig, TaskScorer, content_free_rows, predictions
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskRow, load_task

SENTENCES = ("味道很好，下次还来", "太差了，再也不买", "物流很快", "客服一直不回复", "书很有意思")


def rows() -> list[TaskRow]:
    return [TaskRow(id=i, texts={"sentence": s}, label=None, candidates=None, line=i + 1) for i, s in enumerate(SENTENCES)]


def scorer_of(model: GPT, tokenizer: Tokenizer, form: LabelForm = LabelForm.CLM, *, with_groups: bool = False) -> TaskScorer:
    task = load_task("demo_topics" if with_groups else "demo_reviews", [conf_dir() / "task"])
    return TaskScorer(task, ScoringConfig(form=form, with_groups=with_groups), TreeScorer(model, ScorerConfig()), tokenizer)


@pytest.mark.parametrize("method", [method for method in Method if not method.needs_lexical])
@pytest.mark.parametrize("form", list(LabelForm))
def test_every_method_of_the_model_decides_in_both_label_forms(
    sparse_model: GPT, tokenizer: Tokenizer, method: Method, form: LabelForm
) -> None:
    scorer = scorer_of(sparse_model, tokenizer, form)
    decision = scorer.fit(method, scorer.keys(rows()), coarse_to_fine=None)
    scores = scorer.scores(rows(), decision)
    assert scores.shape == (len(SENTENCES), 2)
    assert set(predictions(scores, rows(), scorer.task)) <= {"Positive", "Negative"}


def test_content_free_calibration_makes_empty_texts_even(sparse_model: GPT, tokenizer: Tokenizer) -> None:
    scorer = scorer_of(sparse_model, tokenizer)
    decision = scorer.fit(Method.CONTENT_FREE, [], coarse_to_fine=None)
    assert decision.n_fitted == len(CONTENT_FREE_TEXTS)
    empty = [TaskRow(id=0, texts={"sentence": text}, label=None, candidates=None, line=1) for text in CONTENT_FREE_TEXTS]
    raw = scorer.fit(Method.RAW, [], coarse_to_fine=None)
    before = np.ptp(softmax(scorer.scores(empty, raw)).mean(axis=0))
    after = np.ptp(softmax(scorer.scores(empty, decision)).mean(axis=0))
    assert after < before


def test_prior_matching_balances_what_it_was_fitted_on(sparse_model: GPT, tokenizer: Tokenizer) -> None:
    scorer = scorer_of(sparse_model, tokenizer)
    decision = scorer.fit(Method.PRIOR, scorer.keys(rows()), coarse_to_fine=None)
    assert softmax(scorer.scores(rows(), decision)).mean(axis=0) == pytest.approx([0.5, 0.5], abs=1e-4)


def test_coarse_to_fine_answers_within_the_best_group(sparse_model: GPT, tokenizer: Tokenizer) -> None:
    scorer = scorer_of(sparse_model, tokenizer, with_groups=True)
    keys = scorer.keys(rows())
    decision = scorer.fit(Method.PRIOR, keys, coarse_to_fine=CoarseToFine())
    assert decision.groups is not None and scorer.task.label_tree is not None
    best = decision.groups.apply({k.prompt: k.groups_NG for k in keys if k.groups_NG is not None}).argmax(axis=1)
    groups = list(scorer.task.label_tree.values())
    for answer, group in zip(predictions(scorer.scores(rows(), decision), rows(), scorer.task), best, strict=True):
        assert answer in groups[group]


def test_no_rows_have_no_predictions() -> None:
    for name, n_labels in (("demo_topics", 4), ("chid", 0)):
        assert predictions(np.empty((0, n_labels)), [], load_task(name, [conf_dir() / "task"])) == []


def test_content_free_rows_keep_a_blank_for_the_label(sparse_model: GPT, tokenizer: Tokenizer) -> None:
    task = replace(
        load_task("demo_reviews", [conf_dir() / "task"]),
        fields={"sentence": FieldConfig(path="sentence", blank="＿")},
        prompts={"reference": PromptConfig(template="评价：{sentence}。")},
    )
    assert [row.texts["sentence"] for row in content_free_rows(task)] == [f"{text}＿" for text in CONTENT_FREE_TEXTS]
    scorer = TaskScorer(task, ScoringConfig(), TreeScorer(sparse_model, ScorerConfig()), tokenizer)
    assert scorer.fit(Method.CONTENT_FREE, []).n_fitted == len(CONTENT_FREE_TEXTS)
