"""`study`: its numbers against hand-computed ones, pairs and seeds as they should be, and bad input refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from adapt.core.typed import to_plain
from pipelines.tools.study import show
from pipelines.walk.finished_runs import existing_runs
from pipelines.walk.paired_statistics import RunResult, apart, variant_of
from pseudo_label.accuracy import accuracy_of
from tests.support.finished_runs import CHANCE, GOLD, make_run

Study = Callable[..., tuple[int, str]]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Study:
    """Return a function that runs the command on `tmp_path` and returns its exit code and what it wrote."""
    from pipelines.command_line.compose import main

    def go(*arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["pipelines.study", f"run.dir={tmp_path}", *arguments])
        with pytest.raises(SystemExit) as left:
            main("study", show)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.err + captured.out

    return go


def table_of(text: str, heading: str = "## reviews (") -> dict[str, dict[str, str]]:
    """Return the cells of the table under a heading, by the first column and header."""
    lines = text.partition(heading)[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def refused(done: tuple[int, str], *words: str) -> None:
    code, text = done
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), text
    assert text.splitlines()[-1] == errors[0]
    assert "Traceback" not in text
    for word in words:
        assert word in errors[0], errors[0]


def test_one_runs_numbers_are_those_computed_by_hand(tmp_path: Path, study: Study) -> None:
    raw = {"raw": "111111110000", "prior": "111111111100"}
    make_run(tmp_path, "context", raw, base={"raw": CHANCE, "prior": "111100000000"}, seed=3)
    code, text = study("study.runs=[context]")
    assert code == 0, text
    assert "## reviews (dev 8 + few 4 rows)" in text
    row = table_of(text)["context"]
    low, high = (100 * end for end in accuracy_of(["x"] * 12, ["x"] * 8 + ["y"] * 4).ci95)
    assert row["adapted raw"] == f"66.7 [{low:.1f}, {high:.1f}]", "Wilson, dev and few together"
    assert (
        row["base raw"].startswith("50.0 [")
        and row["base prior"].startswith("33.3 [")
        and row["adapted prior"].startswith("83.3 [")
    )
    assert row["seeds"] == "3"
    assert row["held-out loss"] == "3.500 -> 2.500", "over context and prompt tokens, without balance"
    assert row["entropy"] == "0.80", "(8 * 0.9 + 4 * 0.6) / 12"
    # Right on dev, swapped on few: 6 of each class answered, as the gold has it.
    assert (row["largest share"], row["share drift"]) == ("0.50", "0.00")
    assert (row["selected"], row["label accuracy"]) == ("40 of 100", "75.0")
    assert (row["training, s"], row["scoring, s"]) == ("20", "6")
    assert "Left out" not in text and "adapted raw - context" not in text


def test_differences_are_paired_and_marked_where_they_include_zero(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "context", {"raw": "111100000000"})
    make_run(tmp_path, "better", {"raw": "111111111110"})
    make_run(tmp_path, "alike", {"raw": "111000000001"})
    code, text = study("study.runs=[context,better,alike]", "study.baseline=context")
    assert code == 0, text
    rows = table_of(text)
    assert list(rows) == ["context", "better", "alike"]
    better, alike = rows["better"], rows["alike"]
    assert better["adapted raw - context"].startswith("+58.3 [+33.3, ") and not better["adapted raw - context"].endswith("=")
    assert float(better["p"]) == pytest.approx(2 / 2**7, rel=0.01), "7 rows only the one has right, none only the other"
    assert alike["adapted raw - context"].startswith("+0.0 [-") and alike["adapted raw - context"].endswith(" =")
    assert alike["p"] == "1"
    assert (rows["context"]["adapted raw - context"], rows["context"]["p"]) == ("baseline", "-")


def test_seeds_of_a_sweep_and_of_named_runs_are_one_variant(tmp_path: Path, study: Study) -> None:
    for seed, bits in enumerate(["111111000000", "111111111000", "111111111111"]):
        make_run(tmp_path, f"sweep/tasks=reviews,objective.pseudo_label=mlm,seed={seed}", {"raw": bits}, seed=seed)
        make_run(tmp_path, f"context_s{seed}", {"raw": "111111000000"}, seed=seed)
    code, text = study("study.runs=[context_s*,sweep]", "study.baseline=context_s0")
    assert code == 0, text
    rows = table_of(text)
    assert list(rows) == ["context", "sweep/objective.pseudo_label=mlm"]
    sweep = rows["sweep/objective.pseudo_label=mlm"]
    assert sweep["seeds"] == "0, 1, 2"
    assert sweep["adapted raw"].startswith("75.0 [") and sweep["adapted raw"].endswith("] (50.0, 75.0, 100.0)")
    assert sweep["base raw"].count("(") == 0, "the same base has one value"
    assert sweep["adapted raw - context"].startswith("+25.0 [")
    assert sweep["p"] == "-", "McNemar is for one seed"
    assert rows["context"]["adapted raw"].startswith("50.0 [25.4, 74.6]"), "seeds that agree are one list of answers"


def test_the_curriculums_of_the_documents_are_joined_over_seeds(tmp_path: Path, study: Study) -> None:
    for seed in (0, 1):
        for choice, bits in (("none", "0" * 12), ("near", "1" * 12), ("random", "111111000000")):
            make_run(tmp_path, f"{choice}_s{seed}", {"raw": bits}, seed=seed)
    code, text = study('study.runs=["none_*","near_*","random_*"]', "study.baseline=random", "tasks=[reviews]")
    assert code == 0, text
    rows = table_of(text)
    assert {name: row["seeds"] for name, row in rows.items()} == {"none": "0, 1", "near": "0, 1", "random": "0, 1"}
    assert rows["near"]["adapted raw - random"].startswith("+50.0 [")
    assert rows["none"]["adapted raw - random"].startswith("-50.0 [")


def test_seeds_stand_in_the_order_of_their_numbers(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "x_s10", {"raw": "1" * 12}, seed=10)
    make_run(tmp_path, "x_s2", {"raw": "0" * 12}, seed=2)
    row = table_of(study("study.runs=[x_s*]")[1])["x"]
    assert (row["seeds"], row["adapted raw"]) == ("2, 10", "50.0 [50.0, 50.0] (0.0, 100.0)")


def test_many_seeds_are_shown_by_their_ends(tmp_path: Path, study: Study) -> None:
    for seed in range(4):
        make_run(tmp_path, f"x_s{seed}", {"raw": "1" * (3 * seed) + "0" * (12 - 3 * seed)}, seed=seed)
    assert table_of(study("study.runs=[x_s*]")[1])["x"]["adapted raw"].endswith("(0.0 to 75.0)")


def test_names_that_say_another_seed_than_the_artifacts_are_no_seeds(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "steps_s100", {"raw": CHANCE}, seed=0)
    make_run(tmp_path, "steps_s200", {"raw": CHANCE}, seed=0)
    text = study("study.runs=['*']", "study.baseline=steps_s200")[1]
    rows = table_of(text)
    assert {name: row["seeds"] for name, row in rows.items()} == {"steps_s100": "0", "steps_s200": "0"}
    assert rows["steps_s200"]["p"] == "-" and rows["steps_s100"]["p"] == "1"
    assert "steps_s100: is a line of its own, no seed of 'steps': its seed is 0, not 100" in text


def test_runs_that_differ_in_more_than_their_seed_are_no_seeds() -> None:
    results = [RunResult(run=f"x_s{seed}", seed=seed, gold={}, answers={}) for seed in (1, 2)]
    alike = {"x_s1": {"seed": "1", "gate.action": "keep"}, "x_s2": {"seed": "2", "gate.action": "keep"}}
    assert apart(results, alike) == {}
    other = {**alike, "x_s2": {"seed": "2", "gate.action": "warn"}}
    assert apart(results, other) == dict.fromkeys(alike, "they differ in gate.action too")


def test_the_same_seed_twice_is_refused(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "x_s1", {"raw": CHANCE}, seed=1)
    make_run(tmp_path, "x/seed=1", {"raw": CHANCE}, seed=1)
    refused(study("study.runs=['x_s1','x/*']"), "'x_s1' and 'x/seed=1'", "variant 'x' with seed 1", "study.runs")


@pytest.mark.parametrize(
    ("run", "variant"),
    [
        ("context", "context"),
        ("context_s0", "context"),
        ("news_s12", "news"),
        ("news_small", "news_small"),
        ("context_seed=3", "context"),
        ("sweep/seed=1", "sweep"),
        ("sweep/seed=1,model=tiny", "sweep/model=tiny"),
        ("sweep/tasks=a,b,modelrouter=top1,seed=2", "sweep/modelrouter=top1"),
        ("sweep/data.root=x_s1,seed=2", "sweep/data.root=x_s1"),
        ("sweep/pretrain.seeds=1", "sweep/pretrain.seeds=1"),
        ("_s1", "_s1"),
    ],
)
def test_a_variant_is_named_without_its_seed(run: str, variant: str) -> None:
    assert variant_of(run) == variant


@pytest.mark.parametrize(
    ("gold", "bits", "words"),
    [
        (GOLD[:10], "1010101010", ["dev 8 + few 4 and dev 8 + few 2"]),
        ([*GOLD[:9], "good", *GOLD[10:]], CHANCE, ["gold of row 2 of few is 'bad' and 'good'"]),
    ],
)
def test_runs_over_different_rows_are_refused(tmp_path: Path, study: Study, gold: list[str], bits: str, words: list[str]) -> None:
    make_run(tmp_path, "one", {"raw": CHANCE})
    make_run(tmp_path, "two", {"raw": bits}, gold=gold)
    done = study("study.runs=[one,two]", f"output={tmp_path}/study.md")
    refused(done, "reviews", "'one' and 'two'", "different rows", "same data", *words)
    assert not (tmp_path / "study.md").exists()


def test_unfinished_runs_are_named_at_the_end(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "good", {"raw": CHANCE})
    make_run(tmp_path, "stopped", {"raw": CHANCE})
    (tmp_path / "stopped" / "evaluate" / "reviews").unlink()
    make_run(tmp_path, "damaged", {"raw": CHANCE})
    (tmp_path / "damaged" / "evaluate" / "reviews" / "answers.json").write_text("[]", encoding="utf-8")
    make_run(tmp_path, "older", {"raw": CHANCE})
    make_run(tmp_path, "newer", {"raw": "111111111111"}, seed=5)
    (tmp_path / "older" / "continue_pretrain" / "reviews").unlink()
    (tmp_path / "older" / "continue_pretrain" / "reviews").symlink_to(tmp_path / "newer" / "continue_pretrain" / "reviews")
    (tmp_path / "begun" / "pretrain").mkdir(parents=True)
    code, text = study("study.runs=[good,stopped,damaged,older,begun]")
    assert code == 0, text
    assert list(table_of(text)) == ["good"]
    last = text.splitlines()[-1]
    assert last.startswith("Left out, not finished: stopped (reviews: no evaluate); damaged (reviews: ")
    assert (
        "older (reviews: continue_pretrain is of other labels than pseudo_label; run continue_pretrain, then evaluate again)"
        in last
    )
    assert "begun (nothing evaluated)" in last


def test_a_base_that_was_not_adapted_is_a_line_without_adapted_numbers(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "base_only", None)
    make_run(tmp_path, "context", {"raw": "111111110000"})
    code, text = study("study.runs=[base_only,context]", "study.baseline=context")
    assert code == 0, text
    row = table_of(text)["base_only"]
    assert row["base raw"].startswith("50.0 [")
    assert [row[name] for name in ("adapted raw", "adapted raw - context", "p", "held-out loss", "entropy", "seeds")] == ["-"] * 6


def test_tasks_have_tables_of_their_own_and_can_be_chosen(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "x", {"raw": CHANCE})
    make_run(tmp_path, "y", {"raw": CHANCE}, task="topics")
    both, one = study("study.runs=['*']")[1], study("study.runs=['*']", "task=topics")[1]
    assert list(table_of(both)) == ["x"] and list(table_of(both, "## topics (")) == ["y"]
    assert "## reviews" not in one and list(table_of(one, "## topics (")) == ["y"]


def test_criteria_of_a_common_base_are_shown_once(tmp_path: Path, study: Study) -> None:
    who = {"task": "reviews", "split": "dev+few", "model": "base"}
    raw, prior = to_plain(accuracy_of(["a"] * 4, ["a", "a", "a", "b"])), to_plain(accuracy_of(["a"] * 4, ["a"] * 4))
    lines = [{**who, "criterion": "sum", "raw": raw, "prior": prior}, {**who, "criterion": "pmi", "raw": prior}]
    lines.append({**who, "model": "adapted", "criterion": "sum", "raw": raw})
    make_run(tmp_path, "one", {"raw": CHANCE}, criteria=lines)
    make_run(tmp_path, "two", {"raw": CHANCE}, criteria=lines)
    text = study("study.runs=[one,two]")[1]
    part = [line for line in text.partition("## reviews criteria")[2].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part]
    assert cells[1:] == [["all", "sum", "75.0 [30.1, 95.4]", "100.0 [51.0, 100.0]"], ["all", "pmi", "100.0 [51.0, 100.0]", "-"]]


def test_output_holds_what_was_printed_and_a_page_beside_it(tmp_path: Path, study: Study) -> None:
    make_run(tmp_path, "context", {"raw": "111100000000"})
    make_run(tmp_path, "better", {"raw": "111111111110"})
    target = tmp_path / "study.md"
    code, text = study("study.runs=[context,better]", "study.baseline=context", f"output={target}")
    assert code == 0, text
    assert target.read_text(encoding="utf-8") == text
    shown = target.with_suffix(".html").read_text(encoding="utf-8")
    assert shown.count("<figure>") == 2, "accuracies, and points over the baseline"
    assert "+58.3" in shown and "better" in shown
    assert not list(tmp_path.glob(".study*"))


def test_mistakes_are_refused_in_one_line(tmp_path: Path, study: Study) -> None:
    refused(study("study.runs=[x]"), "'x' matches no run", "has no runs; check run.dir")
    make_run(tmp_path, "context_s0", {"raw": CHANCE})
    make_run(tmp_path, "sweep/seed=1", {"raw": CHANCE}, seed=1)
    assert existing_runs(tmp_path) == ["context_s0", "sweep/seed=1"]
    refused(study(), "study.runs: names no run", "context_s0, sweep/seed=1")
    refused(study("study.runs=[contxt_s0]"), "'contxt_s0' matches no run", "did you mean 'context_s0'", "sweep/seed=1")
    refused(study("study.runs=[context_s0,other*]"), "'other*' matches no run")
    refused(
        study("study.runs=['*']", "study.baseline=contexts"),
        "study.baseline",
        "did you mean 'context'",
        "there are: context, sweep",
    )
    refused(study("study.runs=['*']", f"output={tmp_path}/page.html"), "output", "page.md")
    refused(study("study.runs=['*']", f"output={tmp_path}/no/where.md"), "cannot be written")
    refused(study("study.run=[x]"), "unknown key")
    (tmp_path / "context_s0" / "evaluate" / "reviews").unlink()
    refused(study("study.runs=[context_s0]"), "no finished run", "context_s0 (reviews: no evaluate)")
