"""Shortlists: the labels of a row that are left to the model get the scores that they have among all labels."""

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
from pseudo_label.decision import Combining, fit_combined
from pseudo_label.labelling import ScoringConfig, TaskScorer
from pseudo_label.shortlist import with_shortlists, within_shortlists
from pseudo_label.tasks import TaskRow, load_task

SENTENCES = ("味道很好，下次还来", "太差了，再也不买", "物流很快", "客服一直不回复", "书很有意思")
LEXICAL = np.asarray([[3.0, 0, 2, 1], [0, 1, 2, 3], [1, 3, 0, 2], [2, 1, 3, 0], [1, 1, 1, 0]])


def rows() -> list[TaskRow]:
    return [TaskRow(id=i, texts={"sentence": s}, label=None, candidates=None, line=i + 1) for i, s in enumerate(SENTENCES)]


def scorer_of(model: GPT, tokenizer: Tokenizer, criterion: str, *, has_synonyms: bool = False) -> TaskScorer:
    task = load_task("demo_topics", [conf_dir() / "task"])
    first, *others = task.labels
    further = {first: ["乒乓", "田径比赛"], others[1]: ["手机"]} if has_synonyms else None
    prompts = {name: replace(prompt, synonyms=further) for name, prompt in task.prompts.items()}
    task = replace(task, prompts=prompts)
    domain = [dict(row.texts) for row in rows()]
    return TaskScorer(task, ScoringConfig(criterion=criterion, domain=domain), TreeScorer(model, ScorerConfig()), tokenizer)


def test_a_shortlist_has_the_best_labels_and_the_first_of_equals() -> None:
    assert [row.shortlist for row in with_shortlists(rows(), LEXICAL, 2)] == [(0, 2), (2, 3), (1, 3), (0, 2), (0, 1)]
    kept = within_shortlists(LEXICAL, LEXICAL, 2)
    assert kept[0].tolist() == [3.0, -np.inf, 2.0, -np.inf]
    assert np.array_equal(within_shortlists(LEXICAL, LEXICAL, 9), LEXICAL)


@pytest.mark.parametrize("has_synonyms", [False, True])
@pytest.mark.parametrize("criterion", ["sum", "mean", "per_character", "pmi", "domain_pmi", "perplexity", "masked_lm"])
def test_labels_of_a_shortlist_score_as_among_all(
    sparse_model: GPT, tokenizer: Tokenizer, criterion: str, has_synonyms: bool
) -> None:
    scorer = scorer_of(sparse_model, tokenizer, criterion, has_synonyms=has_synonyms)
    whole = scorer.keys(rows())
    short = scorer.keys(with_shortlists(rows(), LEXICAL, 2))
    for all_labels, few in zip(whole, short, strict=True):
        wanted = within_shortlists(all_labels.labels_NC, LEXICAL, 2)
        assert few.labels_NC == pytest.approx(wanted, abs=1e-4)
        assert np.isfinite(few.labels_NC).sum(axis=1).tolist() == [2] * len(SENTENCES)


@pytest.mark.parametrize("form", list(LabelForm))
def test_a_shortlisted_decision_answers_as_the_same_one_on_all_labels_cut_afterwards(
    sparse_model: GPT, tokenizer: Tokenizer, form: LabelForm
) -> None:
    scorer = scorer_of(sparse_model, tokenizer, "sum")
    scorer = TaskScorer(scorer.task, replace(scorer.config, form=form), TreeScorer(sparse_model, ScorerConfig()), tokenizer)
    keys = scorer.keys(rows())
    decision = fit_combined(keys, scorer.task, combining=Combining(lexical_weight=1.0), shortlist=2)
    wanted = decision.scores(keys, scorer.task, LEXICAL)
    assert (np.isfinite(wanted).sum(axis=1) == 2).all()
    assert scorer.scores(rows(), decision, LEXICAL) == pytest.approx(wanted, abs=1e-4)


def test_a_row_is_cut_alike_with_a_shortlist(sparse_model: GPT, tokenizer: Tokenizer) -> None:
    """The longest label counts where it is not asked about, else a shortlist would see more of a long text."""
    scorer = scorer_of(sparse_model, tokenizer, "sum")
    longest = replace(scorer.task, label_words={**scorer.task.label_words, scorer.task.labels[-1]: "这里是一个特别长的标签词"})
    scorer = TaskScorer(longest, scorer.config, TreeScorer(sparse_model, ScorerConfig()), tokenizer)
    long_rows = [replace(row, texts={"sentence": row.texts["sentence"] * 60}) for row in rows()]
    lexical = np.asarray([[2.0, 1.0, 0.0, 0.0]] * len(long_rows))
    whole, short = scorer.keys(long_rows)[0], scorer.keys(with_shortlists(long_rows, lexical, 2))[0]
    assert short.labels_NC[:, :2] == pytest.approx(whole.labels_NC[:, :2], abs=1e-4)
