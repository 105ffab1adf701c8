"""Every ranking criterion by hand on small arrays, and what all of them have in common."""

from __future__ import annotations

import numpy as np
import pytest

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, Span
from pseudo_label.criteria.contract import CRITERIA, CandidateScores, Criterion, get_criterion, register
from pseudo_label.zero_shot import form_of

get_criterion("sum")  # imports the folder
ALL = CRITERIA.names()


def scores_of(sums: list[list[float]], tokens: list[list[int]] | None = None) -> CandidateScores:
    """Make scores of candidates; the columns are text, prompt and label."""
    counts = np.full((len(sums), 3), 2) if tokens is None else np.asarray(tokens)
    return CandidateScores(sums_C3=np.asarray(sums, float), tokens_C3=counts, characters_C=np.full(len(sums), 2))


def key(name: str, scores: CandidateScores, null: CandidateScores | None = None) -> list[float]:
    return get_criterion(name).key(scores, null).tolist()


HAND = scores_of([[-10.0, -4.0, -6.0], [-8.0, -4.0, -9.0]], [[5, 2, 2], [5, 2, 4]])


def test_sum_is_the_log_likelihood_of_the_label() -> None:
    assert key("sum", HAND) == [-6.0, -9.0]


def test_mean_is_the_log_likelihood_per_token_of_the_label() -> None:
    assert key("mean", HAND) == [-3.0, -2.25]


def test_channel_is_the_log_likelihood_of_the_text() -> None:
    assert key("channel", HAND) == [-10.0, -8.0]


def test_perplexity_is_over_all_tokens_alike() -> None:
    assert key("perplexity", HAND) == pytest.approx([-20 / 9, -21 / 11])


def test_pmi_takes_the_null_context_off() -> None:
    null = scores_of([[0.0, 0.0, -1.0], [0.0, 0.0, -7.0]])
    assert key("pmi", HAND, null) == [-5.0, -2.0]


def test_pmi_of_a_text_that_changes_nothing_is_zero() -> None:
    assert key("pmi", HAND, HAND) == [0.0, 0.0]


def test_domain_pmi_takes_the_mean_over_other_texts_off() -> None:
    one, other = (scores_of([[0.0, 0.0, -1.0], [0.0, 0.0, -5.0]]), scores_of([[0.0, 0.0, -3.0], [0.0, 0.0, -9.0]]))
    null = CandidateScores.mean_of([one, other])
    assert key("domain_pmi", HAND, null) == [-4.0, -2.0]
    assert key("total_domain_pmi", HAND, null) == [-18.0, -14.0]


def test_length_is_punished_by_sum_and_not_by_mean() -> None:
    short, long = [0.0, 0.0, -2.0], [0.0, 0.0, -6.0]
    scores = scores_of([short, long], [[1, 1, 1], [1, 1, 3]])
    assert np.argmax(key("sum", scores)) == 0
    assert key("mean", scores) == [-2.0, -2.0]


@pytest.mark.parametrize("name", ALL)
def test_the_candidate_with_the_higher_relevant_score_is_preferred(name: str) -> None:
    random = np.random.default_rng(0)
    criterion = get_criterion(name)
    for _ in range(20):
        sums = np.repeat(-random.random((1, 3)) * 10 - 1, 4, axis=0)
        best = int(random.integers(4))
        sums[best, [int(kind) for kind in criterion.kinds]] += 0.5
        null = scores_of(np.repeat(-random.random((1, 3)), 4, axis=0).tolist()) if criterion.needs_null else None
        assert int(np.argmax(criterion.key(scores_of(sums.tolist()), null))) == best


@pytest.mark.parametrize("name", ALL)
def test_a_key_belongs_to_its_candidate_alone(name: str) -> None:
    random = np.random.default_rng(1)
    sums, tokens = -random.random((5, 3)) * 10, random.integers(1, 6, (5, 3))
    null = scores_of((-random.random((5, 3))).tolist(), tokens.tolist())
    order = random.permutation(5)
    shuffled = scores_of(sums[order].tolist(), tokens[order].tolist())
    shuffled_null = CandidateScores(sums_C3=null.sums_C3[order], tokens_C3=null.tokens_C3[order], characters_C=null.characters_C)
    keys = get_criterion(name).key(scores_of(sums.tolist(), tokens.tolist()), null)
    assert keys.shape == (5,)
    assert get_criterion(name).key(shuffled, shuffled_null).tolist() == keys[order].tolist()


@pytest.mark.parametrize("name", ALL)
def test_a_criterion_reads_only_the_kinds_it_asks_for(name: str) -> None:
    criterion = get_criterion(name)
    others = [int(kind) for kind in Span if kind not in criterion.kinds]
    changed = HAND.sums_C3.copy()
    changed[:, others] = -1e9
    other = CandidateScores(sums_C3=changed, tokens_C3=HAND.tokens_C3, characters_C=HAND.characters_C)
    null = HAND if criterion.needs_null else None
    assert criterion.key(other, null).tolist() == criterion.key(HAND, null).tolist()


@pytest.mark.parametrize("name", ALL)
def test_a_key_leaves_the_scores_as_they_were(name: str) -> None:
    before = HAND.sums_C3.copy()
    get_criterion(name).key(HAND, HAND)
    assert (HAND.sums_C3 == before).all()


@pytest.mark.parametrize("name", ALL)
def test_a_criterion_is_found_under_its_own_name_and_scores_something(name: str) -> None:
    criterion = get_criterion(name)
    assert criterion.name == name
    assert criterion.kinds


def test_a_label_is_never_masked_where_other_tokens_are_scored_given_it() -> None:
    for name in ALL:
        criterion = get_criterion(name)
        assert (criterion.form is LabelForm.CLM) == (criterion.kinds != {Span.LABEL})


@pytest.mark.parametrize("form", list(LabelForm))
def test_a_criterion_with_a_form_of_its_own_is_scored_in_it_whatever_the_stage_says(form: LabelForm) -> None:
    assert form_of(get_criterion("channel"), form) is LabelForm.CLM
    assert form_of(get_criterion("masked_lm"), form) is LabelForm.MLM
    assert form_of(get_criterion("sum"), form) is form


def test_masked_lm_is_the_log_likelihood_of_the_label_behind_its_masks() -> None:
    assert key("masked_lm", HAND) == [-6.0, -9.0]


def test_per_character_is_the_log_likelihood_of_the_label_per_character_of_its_word() -> None:
    scores = CandidateScores(sums_C3=HAND.sums_C3, tokens_C3=HAND.tokens_C3, characters_C=np.array([2, 6]))
    assert key("per_character", scores) == [-3.0, -1.5]


def test_total_is_the_log_likelihood_of_all_and_total_pmi_takes_off_that_of_the_label_alone() -> None:
    null = scores_of([[-9.0, -9.0, -1.0], [-9.0, -9.0, -7.0]])
    assert key("total", HAND) == [-20.0, -21.0]
    assert key("total_pmi", HAND, null) == [-19.0, -14.0]


def test_the_five_criteria_of_the_literature_are_there() -> None:
    assert {"sum", "mean", "pmi", "channel", "perplexity"} <= set(ALL)


def test_an_unknown_criterion_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown criterion 'perplexiti' \(did you mean 'perplexity'\?\); there are: channel"):
        get_criterion("perplexiti")


def test_a_name_cannot_be_taken_twice() -> None:
    with pytest.raises(ConfigError, match="criterion 'sum' is registered twice"):
        register(Criterion(name="sum", kinds=frozenset({Span.LABEL}), key=lambda scores, null: scores.sums_C3[:, 0]))
