"""Decisions fitted without labels: what they correct, what they leave alone, and that they can be frozen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from adapt.core.errors import DataError
from adapt.core.typed import from_plain, to_plain
from pseudo_label.coarse_to_fine import CoarseRule, CoarseToFine
from pseudo_label.decision import (
    Combining,
    Decision,
    FittedScores,
    Method,
    fit_combined,
    fit_decision,
    margins,
    match_prior,
    refuse_collapse,
    softmax,
)
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig
from pseudo_label.teachers.contract import row_centred
from pseudo_label.zero_shot import PromptKeys
from tests.support.every_case import for_every

FITTED = [method for method in Method if not method.needs_lexical]
METHODS = pytest.mark.parametrize("method", FITTED)
TREE = {"生活": ["a", "d"], "产业": ["b", "c", "e"]}


def task_of(labels: str = "abc", *, tree: dict[str, list[str]] | None = None, candidates: str | None = None) -> TaskConfig:
    return TaskConfig(
        name="planted",
        fields={"text": FieldConfig(path="text")},
        label_words={} if candidates else {label: label * 2 for label in labels},
        prompts={name: PromptConfig(template="{text}{label}") for name in ("reference", "second", "third")},
        label_tree=tree,
        candidates=candidates,
    )


def random_keys(seed: int, n_rows: int = 200, n_labels: int = 3, n_groups: int = 0, prompt: str = "reference") -> PromptKeys:
    """Draw keys with a strong lean to some classes, as raw likelihoods have."""
    random = np.random.default_rng(seed)
    labels = random.normal(size=(n_rows, n_labels)) * 2 - 20 + random.normal(size=n_labels) * 6
    groups = random.normal(size=(n_rows, n_groups)) - 15 + random.normal(size=n_groups) * 3 if n_groups else None
    return PromptKeys(prompt=prompt, criterion="sum", labels_NC=labels, groups_NG=groups)


def three_prompts(n_groups: int = 0, n_labels: int = 3) -> list[PromptKeys]:
    names = ("reference", "second", "third")
    return [random_keys(i, n_labels=n_labels, n_groups=n_groups, prompt=name) for i, name in enumerate(names)]


def with_labels(keys: PromptKeys, labels: np.ndarray) -> PromptKeys:
    return PromptKeys(prompt=keys.prompt, criterion=keys.criterion, labels_NC=labels, groups_NG=keys.groups_NG)


@for_every(seed=range(5), prior=[[1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])
def test_prior_matching_makes_the_mean_posterior_the_prior(seed: int, prior: list[float]) -> None:
    scores = random_keys(seed).labels_NC
    mean = softmax(scores + match_prior(scores, np.asarray(prior))).mean(axis=0)
    assert mean == pytest.approx(prior, abs=1e-5)


def test_prior_matching_ignores_what_shifts_a_whole_row() -> None:
    scores = random_keys(0).labels_NC
    shifted = scores + np.random.default_rng(1).normal(size=(len(scores), 1)) * 50
    uniform = np.full(3, 1 / 3)
    assert match_prior(shifted, uniform) == pytest.approx(match_prior(scores, uniform), abs=1e-4)


def test_prior_matching_undoes_what_was_added_to_a_class() -> None:
    scores = random_keys(0).labels_NC
    leaning = scores + np.array([0.0, 5.0, -3.0])
    uniform = np.full(3, 1 / 3)
    assert leaning + match_prior(leaning, uniform) == pytest.approx(scores + match_prior(scores, uniform) + 2 / 3, abs=1e-3)


def test_a_class_that_never_wins_gets_its_share_back_and_the_biases_are_finite() -> None:
    scores = np.random.default_rng(0).normal(size=(90, 3)) + np.array([0.0, 0.0, -1000.0])
    biases = match_prior(scores, np.full(3, 1 / 3))
    assert np.isfinite(biases).all()
    assert np.bincount((scores + biases).argmax(axis=1), minlength=3).min() > 15


def test_softmax_sums_to_one_even_for_huge_scores() -> None:
    probs = softmax(np.array([[1e6, 0.0], [-1e6, -1e6], [0.0, -np.inf]]))
    assert probs.tolist() == [[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]


def test_raw_leaves_the_keys_of_the_reference_prompt_as_they_are() -> None:
    keys, task = three_prompts(), task_of()
    decision = fit_decision(Method.RAW, keys, task, coarse_to_fine=None)
    assert decision.prompts == ["reference"]
    assert (decision.scores(keys, task) == keys[0].labels_NC).all()


def test_prior_and_ensemble_mend_a_lean_that_raw_keeps() -> None:
    keys, task = three_prompts(), task_of()
    shares = {}
    for method in FITTED:
        scores = fit_decision(method, keys, task, coarse_to_fine=None).scores(keys, task)
        shares[method] = np.bincount(scores.argmax(axis=1), minlength=3).max() / len(scores)
    assert shares[Method.RAW] > 0.8
    assert max(shares[Method.PRIOR], shares[Method.ENSEMBLE]) < 0.5


def test_prior_adds_the_same_bias_to_every_row() -> None:
    keys, task = three_prompts(), task_of()
    scores = fit_decision(Method.PRIOR, keys, task, coarse_to_fine=None).scores(keys, task)
    change = scores - keys[0].labels_NC
    assert change == pytest.approx(np.broadcast_to(change[0], change.shape))


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_the_ensemble_ignores_a_shift_of_a_row_a_scale_of_a_prompt_and_a_lean_of_a_class(changed: int) -> None:
    keys, task = three_prompts(), task_of()
    before = fit_decision(Method.ENSEMBLE, keys, task, coarse_to_fine=None).scores(keys, task)
    random = np.random.default_rng(changed)
    labels = keys[changed].labels_NC * 7.0 + random.normal(size=(200, 1)) * 30 + random.normal(size=3) * 10
    keys[changed] = with_labels(keys[changed], labels)
    after = fit_decision(Method.ENSEMBLE, keys, task, coarse_to_fine=None).scores(keys, task)
    assert after == pytest.approx(before, abs=1e-5)


def test_the_scale_of_an_ensemble_moves_its_biases_alone_and_evens_out_its_answers() -> None:
    random = np.random.default_rng(0)
    spreads = np.linspace(0.2, 3.0, 40)  # labels of large spread win most rows, though no mean leans to them
    labels = {name: random.normal(size=(600, 40)) * spreads for name in ("reference", "second")}
    keys = [PromptKeys(prompt=name, criterion="sum", labels_NC=values) for name, values in labels.items()]
    task = task_of("".join(chr(ord("A") + i) for i in range(40)))
    plain, scaled = (fit_decision(Method.ENSEMBLE, keys, replace(task, ensemble_scale=scale)) for scale in (1.0, 8.0))
    assert plain.labels.standards == scaled.labels.standards
    counts = [np.bincount(d.flat_scores(keys).argmax(axis=1), minlength=40) for d in (plain, scaled)]
    assert counts[1].std() < counts[0].std() / 2
    mean = softmax(8 * scaled.flat_scores(keys)).mean(axis=0)
    assert mean == pytest.approx(np.full(40, 1 / 40), abs=1e-4)
    raw, prior = (fit_decision(method, keys, replace(task, ensemble_scale=8.0)) for method in (Method.RAW, Method.PRIOR))
    assert raw == fit_decision(Method.RAW, keys, task)
    assert prior == fit_decision(Method.PRIOR, keys, task)


def test_the_ensemble_ignores_the_order_of_prompts() -> None:
    keys, task = three_prompts(), task_of()
    one, other = (fit_decision(Method.ENSEMBLE, order, task, coarse_to_fine=None) for order in (keys, keys[::-1]))
    assert sorted(one.prompts) == sorted(other.prompts) == ["reference", "second", "third"]
    assert one.scores(keys, task) == pytest.approx(other.scores(keys, task), abs=1e-6)


def test_keys_without_any_spread_are_survived() -> None:
    keys, task = [with_labels(k, np.full((10, 3), -5.0)) for k in three_prompts()], task_of()
    scores = fit_decision(Method.ENSEMBLE, keys, task, coarse_to_fine=None).scores(keys, task)
    assert scores == pytest.approx(np.zeros((10, 3)))


@METHODS
def test_a_frozen_decision_scores_a_row_alone_as_among_others(method: Method) -> None:
    task = task_of("abcde", tree=TREE)
    keys = three_prompts(n_groups=2, n_labels=5)
    decision = fit_decision(method, keys, task, coarse_to_fine=CoarseToFine())
    assert decision.n_fitted == 200
    row = []
    for k in keys:
        assert k.groups_NG is not None
        row.append(PromptKeys(prompt=k.prompt, criterion="sum", labels_NC=k.labels_NC[7:8], groups_NG=k.groups_NG[7:8]))
    assert decision.scores(row, task)[0] == pytest.approx(decision.scores(keys, task)[7], rel=1e-12)


@METHODS
def test_coarse_to_fine_answers_within_the_best_group(method: Method) -> None:
    task, keys = task_of("abcde", tree=TREE), three_prompts(n_groups=2, n_labels=5)
    decision = fit_decision(method, keys, task, coarse_to_fine=CoarseToFine())
    flat = fit_decision(method, keys, task, coarse_to_fine=None).scores(keys, task)
    assert decision.groups is not None
    groups = decision.groups.apply({k.prompt: k.groups_NG for k in keys if k.groups_NG is not None}).argmax(axis=1)
    members = [[task.labels.index(label) for label in labels] for labels in TREE.values()]
    for best, flat_row, group in zip(decision.scores(keys, task).argmax(axis=1), flat, groups, strict=True):
        assert best == max(members[group], key=flat_row.__getitem__)


def test_group_priors_follow_the_number_of_their_labels() -> None:
    task, keys = task_of("abcde", tree=TREE), [random_keys(0, n_labels=5, n_groups=2)]
    decision = fit_decision(Method.PRIOR, keys, task, coarse_to_fine=CoarseToFine())
    assert decision.groups is not None and keys[0].groups_NG is not None
    assert softmax(decision.groups.apply({"reference": keys[0].groups_NG})).mean(axis=0) == pytest.approx([0.4, 0.6], abs=1e-5)


def test_without_a_tree_coarse_to_fine_changes_nothing() -> None:
    keys, task = three_prompts(), task_of()
    one, other = (fit_decision(Method.PRIOR, keys, task, coarse_to_fine=c) for c in (CoarseToFine(), None))
    assert one == other


@METHODS
def test_without_unlabeled_rows_the_reference_prompt_decides_as_it_is(method: Method) -> None:
    task = task_of("abcde", tree=TREE)
    empty = [PromptKeys(prompt=n, criterion="sum", labels_NC=np.empty((0, 5)), groups_NG=np.empty((0, 2))) for n in task.prompts]
    for keys in (empty, []):
        decision = fit_decision(method, keys, task, coarse_to_fine=None)
        assert (decision.n_fitted, decision.prompts) == (0, ["reference"])
        later = three_prompts(n_labels=5)
        assert (decision.scores(later, task) == later[0].labels_NC).all()


@pytest.mark.parametrize("method", [Method.RAW, Method.PRIOR, Method.CONTENT_FREE])
def test_rows_with_candidates_of_their_own_are_decided_by_the_reference_prompt(method: Method) -> None:
    task, keys = task_of(candidates="candidates"), three_prompts()
    keys[0].labels_NC[3, 1:] = -np.inf
    decision = fit_decision(method, keys, task, coarse_to_fine=None)
    assert (decision.n_fitted, decision.prompts) == (0, ["reference"])
    assert (decision.scores(keys, task) == keys[0].labels_NC).all()


def test_the_ensemble_of_rows_with_their_own_candidates_averages_prompts_and_knows_no_class() -> None:
    task, keys = task_of(candidates="candidates"), three_prompts()
    for k in keys:
        k.labels_NC[3, 1:] = -np.inf
        k.labels_NC[5, 2] = -np.inf
    decision = fit_decision(Method.ENSEMBLE, keys, task, coarse_to_fine=None)
    assert (decision.n_fitted, sorted(decision.prompts)) == (200, ["reference", "second", "third"])
    wanted = np.zeros((200, 3))
    for k in keys:
        rows = [[x for x in row if np.isfinite(x)] for row in k.labels_NC.tolist()]
        centred = [[x - sum(row) / len(row) for x in row] for row in rows]
        spread = np.std([x for row in centred for x in row])
        for i, row in enumerate(centred):
            wanted[i] += np.array([x / spread / 3 for x in row] + [-np.inf] * (3 - len(row)))
    assert decision.scores(keys, task) == pytest.approx(wanted)
    turned = [with_labels(k, k.labels_NC[:, ::-1]) for k in keys]
    assert fit_decision(Method.ENSEMBLE, turned, task).scores(turned, task) == pytest.approx(wanted[:, ::-1])


@METHODS
@pytest.mark.parametrize("coarse_to_fine", [CoarseToFine(), CoarseToFine(beam=2, rule=CoarseRule.MARGINAL), None])
def test_a_decision_comes_back_from_json_and_decides_alike(method: Method, coarse_to_fine: CoarseToFine | None) -> None:
    task, keys = task_of("abcde", tree=TREE), three_prompts(n_groups=2, n_labels=5)
    decision = fit_decision(method, keys, task, coarse_to_fine=coarse_to_fine)
    back = from_plain(Decision, json.loads(json.dumps(to_plain(decision))), "predictor.json")
    assert back == decision
    assert (back.scores(keys, task) == decision.scores(keys, task)).all()


def test_margins_are_the_lead_of_the_best_label() -> None:
    assert margins(np.array([[1.0, 4.0, 2.5], [3.0, 3.0, -1.0]])).tolist() == [1.5, 0.0]
    assert margins(np.array([[5.0], [-2.0]])).tolist() == [0.0, 0.0]
    assert margins(np.empty((0, 4))).tolist() == []


def test_margins_ignore_the_order_of_labels() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 6))
    assert margins(scores[:, ::-1]).tolist() == margins(scores).tolist()


def raw_decision(method: Method = Method.RAW) -> Decision:
    return Decision(method=method, labels=FittedScores(prompts=["reference"]), groups=None, n_fitted=10)


def test_raw_predictions_that_collapse_to_one_class_are_refused() -> None:
    scores = np.zeros((10, 3))
    scores[:9, 1] = 1.0
    with pytest.raises(DataError, match="9 of 10 raw predictions are 'b'.*method=prior or ensemble"):
        refuse_collapse(scores, raw_decision(), task_of(), limit=0.8)
    refuse_collapse(scores, raw_decision(), task_of(), limit=0.9)


def test_corrected_decisions_own_candidates_and_no_rows_never_collapse() -> None:
    scores = np.tile([0.0, 1.0, 0.0], (10, 1))
    for method in (Method.PRIOR, Method.ENSEMBLE):
        refuse_collapse(scores, raw_decision(method), task_of(), limit=0.5)
    refuse_collapse(scores, raw_decision(), task_of(candidates="candidates"), limit=0.5)
    refuse_collapse(np.empty((0, 3)), raw_decision(), task_of(), limit=0.5)


def test_combined_adds_the_lexical_scores_to_the_models_at_unit_spread_with_weights_of_mean_1() -> None:
    random = np.random.default_rng(0)
    task = task_of()
    n_labels = len(task.labels)
    keys = [PromptKeys(prompt=name, criterion="sum", labels_NC=7 * random.normal(size=(60, n_labels))) for name in task.prompts]
    lexical_NC = random.normal(size=(60, n_labels))
    for method in (Method.ENSEMBLE, Method.RAW, Method.PRIOR):
        combined = fit_combined(keys, task, combining=Combining(model=method, lexical_weight=0.5))
        own_NC = row_centred(fit_decision(method, keys, task).scores(keys, task))
        wanted_NC = (own_NC / own_NC.std() + 0.5 * lexical_NC) * 2 / 1.5
        np.testing.assert_allclose(combined.scores(keys, task, lexical_NC), wanted_NC)
        again: Decision = from_plain(Decision, to_plain(combined), "decision.json")
        np.testing.assert_array_equal(again.scores(keys, task, lexical_NC), combined.scores(keys, task, lexical_NC))


def test_a_reference_that_leads_counts_as_often_as_all_other_prompts_together() -> None:
    random = np.random.default_rng(1)
    task = task_of()
    keys = [PromptKeys(prompt=name, criterion="sum", labels_NC=random.normal(size=(50, len(task.labels)))) for name in task.prompts]
    assert len(keys) > 2
    fitted = fit_decision(Method.ENSEMBLE, keys, task, reference_leads=True).labels
    by_prompt = {key.prompt: key.labels_NC for key in keys}
    single = {name: replace(fitted, prompts=[name], weights={}, biases=None).apply(by_prompt) for name in by_prompt}
    others = [scores for name, scores in single.items() if name != task.reference]
    wanted = (single[task.reference] + np.mean(others, axis=0)) / 2 + np.asarray(fitted.biases)
    np.testing.assert_allclose(fitted.apply(by_prompt), wanted)


def test_combined_without_unlabeled_rows_is_the_reference_prompt_as_it_is() -> None:
    decision = fit_combined([], task_of(), combining=Combining())
    assert not decision.needs_lexical
    assert decision.prompts == [task_of().reference]
    assert decision.n_fitted == 0


@pytest.mark.parametrize("method", [Method.PRIOR, Method.ENSEMBLE])
def test_calibration_matches_the_prior_that_a_task_gives(method: Method) -> None:
    keys, shares = three_prompts(), {"a": 0.7, "b": 0.2, "c": 0.1}
    task = replace(task_of(), prior=shares)
    scores = fit_decision(method, keys, task).scores(keys, task)
    assert softmax(scores).mean(axis=0) == pytest.approx(list(shares.values()), abs=1e-4)


def test_groups_match_the_sum_of_their_labels_shares() -> None:
    task = replace(task_of("abcde", tree=TREE), prior=dict(zip("abcde", (0.3, 0.1, 0.1, 0.4, 0.1), strict=True)))
    keys = three_prompts(n_groups=2, n_labels=5)
    decision = fit_decision(Method.PRIOR, keys, task, coarse_to_fine=CoarseToFine())
    assert softmax(decision.group_scores(keys)).mean(axis=0) == pytest.approx([0.7, 0.3], abs=1e-4)


def test_content_free_texts_lean_as_the_prior_says() -> None:
    keys, task = three_prompts()[:1], replace(task_of(), prior={"a": 0.5, "b": 0.25, "c": 0.25})
    even, leaning = (fit_decision(Method.CONTENT_FREE, keys, t).labels.biases for t in (task_of(), task))
    assert even is not None and leaning is not None
    assert np.asarray(leaning) - np.asarray(even) == pytest.approx(np.log([1.5, 0.75, 0.75]))
