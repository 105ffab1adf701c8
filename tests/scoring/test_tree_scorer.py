"""The tree scorer against one full forward pass per candidate, however it is batched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from adapt.core.errors import DataError
from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Reading, Span, join_parts, read_bidirectionally, read_with_targets
from adapt.model.gpt import GPT, materialize
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from tests.support.full_passes import BOS, EVERY, MASK, SMALL, assert_equal, one_at_a_time
from tests.support.tiny_models import tiny_config

LABELS = ([11], [12, 13], [12, 14, 15], [16], [12])
LAYOUTS = ("label last", "tail after the label", "label first", "cloze in the middle", "masks see what follows")


@pytest.fixture(scope="module", params=["dense", "sparse"])
def model(request: pytest.FixtureRequest) -> GPT:
    experts = {"dense": [0], "sparse": [4, 6]}[request.param]
    return materialize(GPT(tiny_config(experts, vocab_size=SMALL)), seed=4).eval()


def example(layout: str, form: LabelForm, seed: int = 0, labels: Sequence[list[int]] = LABELS) -> list[Reading]:
    """Return the candidates of one example: the same text with each label in the place that the layout says."""
    random = np.random.default_rng(seed)
    context = random.integers(20, 50, 4 + seed % 7).tolist()
    prompt, tail = random.integers(20, 50, 3).tolist(), random.integers(20, 50, 4).tolist()
    start = ([BOS], Span.CONTEXT)
    found = []
    for label in labels:
        parts = {
            "label last": [start, (context, Span.CONTEXT), (prompt, Span.PROMPT), (label, Span.LABEL)],
            "tail after the label": [start, (context, Span.CONTEXT), (label, Span.LABEL), (tail, Span.PROMPT)],
            "label first": [start, (label, Span.LABEL), (prompt, Span.PROMPT), (context, Span.CONTEXT)],
            "cloze in the middle": [start, (context, Span.CONTEXT), (label, Span.LABEL), (context[::-1], Span.CONTEXT)],
            "masks see what follows": [start, (label, Span.LABEL), (context, Span.CONTEXT)],
        }[layout]
        if layout == "masks see what follows" and form is LabelForm.MLM:
            found.append(read_bidirectionally(join_parts(parts), MASK))
        else:
            found.append(read_with_targets(join_parts(parts), form, MASK))
    return found


def examples() -> list[list[Reading]]:
    """Return every layout in both forms, of unequal size and with unequal numbers of candidates."""
    return [
        example(layout, form, seed=seed, labels=LABELS[: 1 + seed % len(LABELS)])
        for seed, (layout, form) in enumerate((layout, form) for layout in LAYOUTS for form in LabelForm)
    ] + [example("label last", LabelForm.CLM, seed=30)]


@pytest.fixture(scope="module")
def full_passes(model: GPT) -> list[FloatArray]:
    """Return the reference scores of `examples()`."""
    return [one_at_a_time(model, candidates) for candidates in examples()]


def scored(
    model: GPT, given: Sequence[Sequence[Reading]], kinds: frozenset[Span] = EVERY, config: ScorerConfig | None = None
) -> list[FloatArray]:
    return list(TreeScorer(model, config or ScorerConfig()).score(given, kinds))


@pytest.mark.parametrize("form", list(LabelForm))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_score_equals_a_full_forward_pass_of_its_candidate(model: GPT, layout: str, form: LabelForm) -> None:
    given = [example(layout, form, seed=seed) for seed in range(3)]
    found = scored(model, given)
    assert_equal(found, [one_at_a_time(model, candidates) for candidates in given])
    assert all(bool((scores <= 0).all()) and bool((scores[:, int(Span.LABEL)] < 0).all()) for scores in found)


def test_masked_labels_of_equal_length_that_see_what_follows_share_a_row(model: GPT) -> None:
    taken: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: taken.append(len(inputs[0].ids_BT)))
    candidates = example("masks see what follows", LabelForm.MLM)
    found = scored(model, [candidates])
    handle.remove()
    assert sum(taken) == len({len(label) for label in LABELS})
    assert_equal(found, [one_at_a_time(model, candidates)])


@pytest.mark.parametrize(
    "config",
    [
        ScorerConfig(max_batch_tokens=1),
        ScorerConfig(max_batch_tokens=60),
        ScorerConfig(window=1),
        ScorerConfig(window=3, max_batch_tokens=100),
        ScorerConfig(logit_rows=1),
        ScorerConfig(logit_rows=5),
        *(ScorerConfig(layout=layout) for layout in Layout),
        *(ScorerConfig(layout=layout, max_batch_tokens=60, window=4) for layout in Layout),
    ],
)
def test_scores_do_not_depend_on_batching(model: GPT, full_passes: list[FloatArray], config: ScorerConfig) -> None:
    assert_equal(scored(model, examples(), config=config), full_passes)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("max_batch_tokens", [1, 100, 8192])
def test_two_steps_give_the_scores_of_one(
    model: GPT, full_passes_in_two: list[tuple[FloatArray, FloatArray]], layout: Layout, max_batch_tokens: int
) -> None:
    given = examples_in_two()
    scorer = TreeScorer(model, ScorerConfig(layout=layout, max_batch_tokens=max_batch_tokens, window=5))
    found = list(scorer.score_in_two_steps(given, EVERY, lambda _, sums: [int(sums.sum(axis=1).argmax()) % 3, 1]))
    assert len(found) == len(given)
    for result, (coarse, fine) in zip(found, full_passes_in_two, strict=True):
        assert result.chosen == [int(coarse.sum(axis=1).argmax()) % 3, 1]
        assert_equal([result.coarse_G3, result.fine_F3], [coarse, fine[result.chosen]])


def examples_in_two() -> list[tuple[list[Reading], list[Reading]]]:
    """Return coarse and fine candidates of one text each, in every layout and form."""
    shapes = [(layout, form) for layout in LAYOUTS for form in LabelForm]
    fine = [[21], [22, 23], [24]]
    return [(example(*shape, seed=seed), example(*shape, seed=seed, labels=fine)) for seed, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def full_passes_in_two(model: GPT) -> list[tuple[FloatArray, FloatArray]]:
    return [(one_at_a_time(model, coarse), one_at_a_time(model, fine)) for coarse, fine in examples_in_two()]


def test_scores_do_not_depend_on_the_other_examples(model: GPT) -> None:
    given = examples()
    together = scored(model, given)
    assert_equal(together, [scored(model, [candidates])[0] for candidates in given])
    assert_equal(scored(model, given[::-1]), together[::-1])


def test_scores_do_not_depend_on_the_order_of_candidates_or_on_which_there_are(model: GPT) -> None:
    for candidates in examples():
        straight = scored(model, [candidates])[0]
        order = np.random.default_rng(6).permutation(len(candidates))
        assert_equal(scored(model, [[candidates[i] for i in order]]), [straight[order]])
        assert_equal([np.concatenate([scored(model, [[one]])[0] for one in candidates])], [straight])


def test_a_candidate_that_stands_twice_gets_the_same_score_twice(model: GPT) -> None:
    candidates = example("label last", LabelForm.CLM)
    scores = scored(model, [[candidates[1], candidates[1]]])[0]
    np.testing.assert_array_equal(scores[0], scores[1])


@pytest.mark.parametrize("kinds", [frozenset({Span.LABEL}), frozenset({Span.CONTEXT, Span.PROMPT}), frozenset()])
def test_kinds_that_are_not_asked_for_are_0(model: GPT, kinds: frozenset[Span]) -> None:
    given = examples()
    found = scored(model, given, kinds)
    assert_equal(found, [one_at_a_time(model, candidates, kinds) for candidates in given])
    for scores in found:
        assert not scores[:, [int(kind) for kind in EVERY - kinds]].any()


def test_a_candidate_as_long_as_the_context_is_scored(model: GPT) -> None:
    ids = np.random.default_rng(7).integers(3, 50, model.context_length).tolist()
    reading = read_with_targets(join_parts([(ids[:-1], Span.CONTEXT), (ids[-1:], Span.LABEL)]), LabelForm.CLM)
    assert_equal(scored(model, [[reading]]), [one_at_a_time(model, [reading])])


def test_a_tree_larger_than_the_context_is_scored(model: GPT) -> None:
    candidates = example("label first", LabelForm.CLM, labels=[[3 + label] for label in range(15)])
    assert sum(len(one) for one in candidates) > model.context_length
    assert_equal(scored(model, [candidates]), [one_at_a_time(model, candidates)])


def test_a_candidate_longer_than_the_context_is_refused(model: GPT) -> None:
    ids = [5] * (model.context_length + 1)
    reading = read_with_targets(join_parts([(ids, Span.CONTEXT)]), LabelForm.CLM)
    with pytest.raises(DataError, match="has 97 tokens, but the model's context is 96"):
        scored(model, [[reading]])


def test_examples_are_taken_a_window_at_a_time(model: GPT) -> None:
    taken = 0

    def stream() -> Iterator[list[Reading]]:
        nonlocal taken
        for one in (example("label last", LabelForm.CLM, seed=seed) for seed in range(10)):
            taken += 1
            yield one

    results = TreeScorer(model, ScorerConfig(window=4)).score(stream(), EVERY)
    assert taken == 0
    seen = []
    for _ in results:
        seen.append(taken)
    assert seen == [4, 4, 4, 4, 8, 8, 8, 8, 10, 10]


def test_no_examples_give_no_scores(model: GPT) -> None:
    assert scored(model, []) == []


def test_the_scorer_takes_what_its_model_takes(model: GPT) -> None:
    assert TreeScorer(model, ScorerConfig()).context_length == model.context_length
