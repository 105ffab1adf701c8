"""Coarse to fine reads only the labels inside the followed groups, and answers as if it had read them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pytest

from adapt.core.scorer import FloatArray, TwoStepScores
from adapt.core.spans import LabelForm, Reading, Span
from adapt.model.gpt import GPT, materialize
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.tokenizer import Tokenizer
from pseudo_label.coarse_to_fine import CoarseRule, CoarseToFine, followed_groups, groups_of_labels
from pseudo_label.decision import Decision, Method
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions
from pseudo_label.tasks import TaskRow, load_task
from tests.support.tiny_models import ROOT, tiny_config

TEXTS = ["股市今天大涨", "国足赢了比赛", "新款手机发布，价格不高", "三岁的孩子会背诗", "春天去哪里玩", "油价又涨了", "两国签订协议"]
METHODS = pytest.mark.parametrize("method", [Method.RAW, Method.PRIOR, Method.CONTENT_FREE])
BEAMS = pytest.mark.parametrize("beam", [1, 2, 5, 9])


def rows() -> list[TaskRow]:
    texts = [{"sentence": text, "keywords": ""} for text in TEXTS]
    return [TaskRow(id=i, texts=text, label=None, candidates=None, line=i + 1) for i, text in enumerate(texts)]


class Watched(TreeScorer):
    """A tree scorer that remembers which fine candidates it was made to read the last time."""

    def __init__(self, model: GPT, config: ScorerConfig) -> None:
        super().__init__(model, config)
        self.chosen: dict[int, list[int]] = {}
        self.n_flat = 0

    def score(self, examples: Iterable[Sequence[Reading]], kinds: frozenset[Span]) -> Iterator[FloatArray]:
        self.n_flat += 1
        return super().score(examples, kinds)

    def score_in_two_steps(
        self,
        examples: Iterable[tuple[Sequence[Reading], Sequence[Reading]]],
        kinds: frozenset[Span],
        choose: Callable[[int, FloatArray], Sequence[int]],
    ) -> Iterator[TwoStepScores]:
        self.chosen = {}

        def remember(index: int, sums: FloatArray) -> Sequence[int]:
            assert index not in self.chosen, "an example is decided once"
            self.chosen[index] = list(choose(index, sums))
            return self.chosen[index]

        return super().score_in_two_steps(examples, kinds, remember)


@pytest.fixture(scope="module")
def model() -> GPT:
    return materialize(GPT(tiny_config([6], n_layers=2, init_std=0.3)), seed=3).eval()


def scorer_of(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    criterion: str | None = None,
    form: LabelForm = LabelForm.CLM,
    config: ScorerConfig | None = None,
) -> tuple[TaskScorer, Watched]:
    task = load_task("tnews", [ROOT / "conf" / "task"])
    watched = Watched(model, config or ScorerConfig())
    scoring = ScoringConfig(form=form, prompts=["reference"], criterion=criterion, with_groups=True)
    return TaskScorer(task, scoring, watched, tokenizer), watched


def full_scores(scorer: TaskScorer, decision: Decision) -> FloatArray:
    return decision.scores(scorer.keys(rows(), decision.prompts), scorer.task)


def fit(scorer: TaskScorer, method: Method, coarse: CoarseToFine) -> Decision:
    return scorer.fit(method, scorer.keys(rows()), coarse_to_fine=coarse)


def assert_read_labels_equal(found: FloatArray, wanted: FloatArray) -> None:
    """Compare the labels that were read; the others stand at -inf, and none of them would have won."""
    read = np.isfinite(found)
    assert read.any(axis=1).all() and not read.all()
    np.testing.assert_allclose(found[read], wanted[read], atol=1e-4, rtol=0)
    assert found.argmax(axis=1).tolist() == wanted.argmax(axis=1).tolist()


@METHODS
@BEAMS
@pytest.mark.parametrize("rule", list(CoarseRule))
@pytest.mark.parametrize("criterion", ["sum", "pmi"])
def test_reading_labels_in_two_steps_answers_as_reading_them_all(
    model: GPT, tokenizer: Tokenizer, method: Method, beam: int, rule: CoarseRule, criterion: str
) -> None:
    scorer, watched = scorer_of(model, tokenizer, criterion=criterion)
    decision = fit(scorer, method, CoarseToFine(beam=beam, rule=rule))
    wanted, found = full_scores(scorer, decision), scorer.scores(rows(), decision)
    answers = predictions(found, rows(), scorer.task)
    assert answers == predictions(wanted, rows(), scorer.task)
    assert len(set(answers)) > 1 or method is not Method.PRIOR, "rows that all get one label test nothing"
    groups = decision.group_scores(scorer.keys(rows(), decision.prompts))
    inside_NC = followed_groups(groups, beam)[:, groups_of_labels(scorer.task)]
    assert [watched.chosen[i] for i in range(len(TEXTS))] == [np.flatnonzero(row).tolist() for row in inside_NC]
    assert np.isneginf(found[~inside_NC]).all()
    if rule is CoarseRule.MARGINAL:
        np.testing.assert_allclose(found[inside_NC], wanted[inside_NC], atol=1e-4, rtol=0)
    else:
        lifts = np.where(inside_NC, wanted - np.where(inside_NC, found, 0.0), np.nan)
        assert np.nanmax(lifts, axis=1) == pytest.approx(np.nanmin(lifts, axis=1), abs=1e-4)


@pytest.mark.parametrize("criterion", ["mean", "per_character", "perplexity", "total", "total_pmi", "masked_lm", "channel"])
def test_every_criterion_can_be_read_in_two_steps(model: GPT, tokenizer: Tokenizer, criterion: str) -> None:
    for form in LabelForm:
        scorer, _ = scorer_of(model, tokenizer, criterion=criterion, form=form)
        decision = fit(scorer, Method.PRIOR, CoarseToFine(beam=2, rule=CoarseRule.MARGINAL))
        assert_read_labels_equal(scorer.scores(rows(), decision), full_scores(scorer, decision))


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("max_batch_tokens", "window"), [(1, 512), (300, 2), (8192, 3)])
def test_how_rows_are_batched_changes_no_score_in_two_steps(
    model: GPT, tokenizer: Tokenizer, layout: Layout, max_batch_tokens: int, window: int
) -> None:
    config = ScorerConfig(layout=layout, max_batch_tokens=max_batch_tokens, window=window)
    scorer, _ = scorer_of(model, tokenizer, criterion="pmi", config=config)
    reference, _ = scorer_of(model, tokenizer, criterion="pmi")
    decision = fit(reference, Method.PRIOR, CoarseToFine(beam=2, rule=CoarseRule.MARGINAL))
    assert_read_labels_equal(scorer.scores(rows(), decision), full_scores(reference, decision))


def test_one_row_scores_alone_as_among_others(model: GPT, tokenizer: Tokenizer) -> None:
    scorer, _ = scorer_of(model, tokenizer, criterion="pmi")
    decision = fit(scorer, Method.PRIOR, CoarseToFine(beam=2))
    together = scorer.scores(rows(), decision)
    for index, row in enumerate(rows()):
        np.testing.assert_allclose(scorer.scores([row], decision)[0], together[index], atol=1e-4, rtol=0)


@METHODS
@pytest.mark.parametrize("rule", list(CoarseRule))
def test_no_rows_have_scores_of_the_tasks_width(model: GPT, tokenizer: Tokenizer, method: Method, rule: CoarseRule) -> None:
    for criterion in ("sum", "pmi"):
        scorer, watched = scorer_of(model, tokenizer, criterion=criterion)
        decision = fit(scorer, method, CoarseToFine(rule=rule))
        assert scorer.scores([], decision).shape == (0, 15)
        assert watched.chosen == {}


def test_without_groups_and_for_an_ensemble_every_label_is_read(model: GPT, tokenizer: Tokenizer) -> None:
    scorer, watched = scorer_of(model, tokenizer)
    for method, coarse in ((Method.PRIOR, None), (Method.ENSEMBLE, CoarseToFine())):
        decision = scorer.fit(method, scorer.keys(rows()), coarse_to_fine=coarse)
        before = watched.n_flat
        found = scorer.scores(rows(), decision)
        assert watched.n_flat > before
        assert watched.chosen == {}
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, full_scores(scorer, decision), atol=1e-4, rtol=0)
