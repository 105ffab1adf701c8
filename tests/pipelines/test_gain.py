"""What a verdict says of answers: the gain, method by method, and why it means little, with the key to change."""

from __future__ import annotations

import pytest

from pipelines.stages.gain import gain_in_words, in_a_sentence, in_lines
from pipelines.stages.products import HeldOut, Part, Training

GOLD = ["good", "bad"] * 60
ALL_GOOD = ["good"] * 120
HALF = ["good"] * 60 + ["bad"] * 60


def test_the_gain_is_over_the_best_without_adapting_and_beside_it_by_method() -> None:
    answers = {
        ("lexical", "lexical"): ALL_GOOD, ("base", "raw"): HALF, ("base", "prior"): HALF,
        ("adapted", "raw"): HALF, ("adapted", "prior"): GOLD,
    }  # fmt: skip
    said = in_a_sentence(gain_in_words("prior", GOLD, answers, 200))
    assert said.startswith("gained, +50.0 points [")
    assert "on 120 rows: adapted prior 100.0 %, best without adapting 50.0 % (lexical); " in said
    assert "by method, adapted over not adapted: raw +0.0 points [+0.0, +0.0], prior +50.0 points [" in said
    assert "steps" not in said
    assert "every answer" not in said


def test_a_terminal_gets_lines_that_each_say_one_thing() -> None:
    taught = ["good", "bad", "bad", "good"] * 30
    answers = {("lexical", "lexical"): ALL_GOOD, ("base", "raw"): HALF, ("adapted", "raw"): GOLD, ("adapted", "lexical"): taught}
    lines = in_lines(gain_in_words("raw", GOLD[:20], {who: given[:20] for who, given in answers.items()}, 3)).splitlines()
    assert [line.partition(" [")[0] for line in lines] == [
        "gained, +50.0 points",
        "  adapted raw 100.0 %",
        "  best without adapting 50.0 % (lexical)",
        "  over the taught lexical labeller by itself +50.0 points",
        "  by method, adapted over not adapted:",
        "    lexical +0.0 points",
        "    raw +50.0 points",
        "  20 rows tell only large gains: label more than 100 in dev or few",
        "  3 steps are few, so chance decides much: raise continue_pretrain.epochs or pseudo_label.selection.share",
    ]
    assert max(map(len, lines)) < 110
    assert in_lines(gain_in_words("raw", [], {}, 9)) == in_a_sentence(gain_in_words("raw", [], {}, 9))


def test_the_taught_lexical_labeller_is_compared_with_the_one_before() -> None:
    answers = {("lexical", "lexical"): HALF, ("base", "raw"): HALF, ("adapted", "lexical"): GOLD, ("adapted", "raw"): HALF}
    said = in_a_sentence(gain_in_words("raw", GOLD, answers, 200))
    assert "best without adapting 50.0 % (lexical); over the taught lexical labeller by itself -50.0 points [" in said
    assert "by method, adapted over not adapted: lexical +50.0 points [" in said
    by_itself = in_a_sentence(gain_in_words("lexical", GOLD, answers, 200))
    assert by_itself.startswith("gained, +50.0 points") and "by itself" not in by_itself


def test_a_loss_says_how_the_base_is_exported() -> None:
    said = in_a_sentence(gain_in_words("raw", GOLD, {("base", "raw"): GOLD, ("adapted", "raw"): HALF}, 200))
    assert said.startswith("lost, -50.0 points")
    assert "to export the base as it is, give another run.name and 'stages=[evaluate,export]'" in said


@pytest.mark.parametrize(
    ("own", "n_rows", "steps", "words"),
    [
        (ALL_GOOD, 120, 200, ["adapted raw: every answer is 'good'", "evaluate.method=prior", "continue_pretrain.optimizer.lr"]),
        (HALF, 120, 200, ["200 steps changed no answer", "continue_pretrain.epochs"]),
        (GOLD, 120, 3, ["3 steps are few, so chance decides much", "pseudo_label.selection.share"]),
        (GOLD, 20, 200, ["20 rows tell only large gains", "label more than 100 in dev or few"]),
    ],
)
def test_a_comparison_that_means_little_says_why_and_what_to_change(
    own: list[str], n_rows: int, steps: int, words: list[str]
) -> None:
    answers = {("base", "raw"): HALF[:n_rows], ("adapted", "raw"): own[:n_rows]}
    said = in_a_sentence(gain_in_words("raw", GOLD[:n_rows], answers, steps))
    for word in words:
        assert word in said


def test_a_base_that_gives_one_answer_is_no_reason_for_smaller_steps() -> None:
    almost = ["good"] * 114 + ["bad"] * 6
    answers = {("base", "raw"): almost, ("adapted", "raw"): ALL_GOOD, ("base", "prior"): HALF, ("adapted", "prior"): HALF}
    said = in_a_sentence(gain_in_words("raw", GOLD, answers, 200))
    assert "every answer is 'good' (the base gave one answer to 95 % of the rows); set evaluate.method=prior" in said
    assert "pipelines.prompt_search" in said and "optimizer.lr" not in said
    both = {**answers, ("adapted", "prior"): ALL_GOOD}
    said = in_a_sentence(gain_in_words("raw", GOLD, both, 200))
    assert "adapted prior: every answer is 'good'; lower continue_pretrain.optimizer.lr" in said


def test_one_row_and_one_step_are_spoken_of_as_one() -> None:
    said = in_a_sentence(gain_in_words("raw", GOLD[:1], {("base", "raw"): GOLD[:1], ("adapted", "raw"): ["bad"]}, 1))
    assert "] on 1 row:" in said
    assert "1 row tells only large gains" in said and "1 step is few" in said


def test_answers_that_cannot_be_compared_say_so() -> None:
    assert "no labelled rows" in in_a_sentence(gain_in_words("raw", [], {}, 200))


def test_the_loss_of_the_text_is_said_apart_from_that_of_the_prompt() -> None:
    none = Part(value=0.0, count=0.0)
    before = {"context": Part(value=5.0, count=90.0), "prompt": Part(value=2.0, count=10.0), "pseudo_label": none}
    after = {"context": Part(value=4.0, count=90.0), "prompt": Part(value=1.0, count=10.0), "pseudo_label": none}
    held_out = {
        "reviews": HeldOut(before=before, after=after),
        "general": HeldOut(before={"context": before["context"]}, after=after),
    }
    said = str(Training(held_out=held_out, steps=9))
    assert said.endswith("reviews context 5.000 -> 4.000, prompt 2.000 -> 1.000; general 5.000 -> 4.000")
