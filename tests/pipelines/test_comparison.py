"""Points beside each other: their table, the baseline of each task, the mean over tasks, and the page that links them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapt.core.errors import AdaptError, CheckpointError, ConfigError
from pipelines.walk.compared_runs import conclude_sweep, points_of, settings_of
from pipelines.walk.comparison import against, check_baseline, read_points
from pipelines.walk.comparison_page import comparison_page, differing_settings, lead_of
from pipelines.walk.comparison_tables import means_table, points_table, text_table
from pipelines.walk.sweep_record import RECORD_FILE, PointRecord, SweepRecord, read_record, settings_in
from pseudo_label.comparison import paired_difference
from tests.support.finished_runs import CHANCE, GOLD, make_run

BETTER = "111111111110"
ROUTERS, TASKS = ("top1", "top2"), ("reviews", "topics")


def record_of(*, seeds: tuple[int, ...] = (1,), baseline: str | None = None) -> SweepRecord:
    """Return a sweep over two tasks and two routers whose points are done."""
    points: list[PointRecord] = []
    for task in TASKS:
        for router in ROUTERS:
            for seed in seeds:
                varied = [f"tasks=['{task}']", f"model/router={router}", f"seed={seed}"]
                name = f"tasks={task},modelrouter={router},seed={seed}"
                points.append(
                    PointRecord(number=len(points), name=name, run=f"sweep/{name}", settings=settings_in(varied), is_done=True)
                )
    return SweepRecord(command="python -m pipelines.run -m", baseline=baseline, points=points, most=len(points))


def write_sweep(root: Path, record: SweepRecord, bits: dict[tuple[str, str], str]) -> None:
    """Write the points' runs; `bits` are right answers of the adapted model by task and router."""
    for point in record.points:
        task, router, seed = (point.settings[key] for key in ("tasks", "model/router", "seed"))
        if (task, router) in bits:
            make_run(root, point.run, {"raw": bits[task, router]}, task=task, seed=int(seed))


@pytest.fixture
def two_by_two(tmp_path: Path) -> tuple[Path, SweepRecord]:
    record = record_of()
    write_sweep(tmp_path, record, {(t, r): BETTER if r == "top2" else CHANCE for t in TASKS for r in ROUTERS})
    return tmp_path, record


def cells(text: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_each_point_is_compared_with_the_baseline_of_its_own_task(two_by_two: tuple[Path, SweepRecord]) -> None:
    root, record = two_by_two
    found = against(read_points(root, record.points), None)
    assert {task: one.run for task, one in found.baseline.items()} == {
        task: f"sweep/tasks={task},modelrouter=top1,seed=1" for task in TASKS
    }
    header, *rows = cells(text_table(points_table(found)))
    over = dict(zip([row[0] for row in rows], [row[header.index("over baseline")] for row in rows], strict=True))
    right = {bits: np.asarray([bit == "1" for bit in bits], dtype=np.float64) for bits in (BETTER, CHANCE)}
    by_hand = paired_difference(right[BETTER], right[CHANCE])
    low, high = (100 * end for end in by_hand.ci95)
    for task in TASKS:
        assert over[f"tasks={task},modelrouter=top1,seed=1"] == "baseline"
        assert over[f"tasks={task},modelrouter=top2,seed=1"] == f"+41.7 [{low:+.1f}, {high:+.1f}]"


@pytest.mark.parametrize("name", ["tasks=topics,modelrouter=top2,seed=1", "sweep/modelrouter=top2"])
def test_a_baseline_is_named_as_a_point_or_as_a_variant(two_by_two: tuple[Path, SweepRecord], name: str) -> None:
    root, record = two_by_two
    found = against(read_points(root, record.points), name)
    assert [one.run for one in found.baseline.values()] == [f"sweep/tasks={task},modelrouter=top2,seed=1" for task in TASKS]


def test_an_unknown_baseline_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"baseline: no point or run is 'sed=1' \(did you mean 'seed=1'\?\); there are: seed=1"):
        check_baseline("sed=1", ["seed=1"])


def test_the_mean_over_tasks_counts_tasks_alike_and_wants_all_of_them(tmp_path: Path) -> None:
    record = record_of(seeds=(1, 2))
    bits = {("reviews", "top1"): CHANCE, ("topics", "top1"): BETTER, ("reviews", "top2"): BETTER}
    write_sweep(tmp_path, record, bits)
    table = means_table(against(read_points(tmp_path, record.points), None))
    assert table is not None
    rows = {(row[0], row[1]): row for row in table.rows}
    assert {name for name, _ in rows} == {"sweep/modelrouter=top1"}, "top2 was not run on topics"
    cell = dict(zip(table.header, rows["sweep/modelrouter=top1", "adapted"], strict=True))
    assert (cell["reviews"], cell["topics"]) == ("50.0", "91.7")
    assert cell["mean over tasks"].startswith("70.8 [")
    assert means_table(read_points(tmp_path, record.points[:4])) is None, "one task has no mean"


def test_points_that_failed_or_were_not_reached_keep_their_line(two_by_two: tuple[Path, SweepRecord]) -> None:
    root, record = two_by_two
    one, two, three, four = record.points
    ended = [one, replace(two, is_done=False, error="seed: is odd"), replace(three, is_done=False), four]
    found = against(read_points(root, ended), None)
    assert {row[0]: row[-1] for row in points_table(found).rows} == {
        one.name: "done",
        two.name: "failed: seed: is odd",
        three.name: "missing",
        four.name: "done",
    }
    assert lead_of(found)[0].startswith("4 points: 2 done, 1 failed, 1 missing.")
    assert [result.run for result in found.results["reviews"]] == [one.run], "older results of a failed point do not count"


def test_the_best_point_is_named_with_what_flatters_it(two_by_two: tuple[Path, SweepRecord]) -> None:
    root, record = two_by_two
    *_, said = lead_of(against(read_points(root, record.points), None))
    assert said.startswith("topics: router=top2 is best of 2 with 91.7 % [")
    assert "+41.7 points over the baseline [" in said and said.endswith("chosen on the rows that are measured, which favours it.")


def test_settings_that_differ_are_found_and_tasks_read_as_names() -> None:
    points = record_of(seeds=(1, 2)).points
    assert points[0].settings == {"tasks": "reviews", "model/router": "top1", "seed": "1"}
    assert differing_settings(points) == ["tasks", "model/router", "seed"]
    assert differing_settings(points[:2]) == ["seed"]


def test_a_sweeps_page_links_what_there_is_and_its_record_reads_back(two_by_two: tuple[Path, SweepRecord]) -> None:
    root, record = two_by_two
    with_page, failed = record.points[0], replace(record.points[1], is_done=False, error="<b>odd</b>")
    (root / with_page.run / "report").mkdir()
    (root / with_page.run / "report" / "report.html").touch()
    record = replace(record, points=[with_page, failed, *record.points[2:]])
    said = conclude_sweep(root / "sweep", record)
    page = (root / "sweep" / "index.html").read_text(encoding="utf-8")
    assert said.splitlines()[-1] == f"sweep: {root / 'sweep' / 'index.html'}"
    links = re.findall(r'<a href="([^#"]+)"', page)
    assert links == ["tasks%3Dreviews%2Cmodelrouter%3Dtop1%2Cseed%3D1/report/report.html"]
    assert "seed=1: &lt;b&gt;odd&lt;/b&gt;</p>" in page and "<b>odd" not in page
    assert "python -m pipelines.run -m" in page
    assert page.count('<option value="">all</option>') == 3, "task, router and status can be chosen"
    assert len(page.encode()) < 5_000_000
    assert read_record(root / "sweep") == record
    points, command = points_of(root, ["sweep"])
    assert points == record.points and command == record.command


def test_a_sweep_over_different_rows_is_listed_without_a_comparison(tmp_path: Path) -> None:
    record = record_of()
    for number, point in enumerate(record.points):
        gold = GOLD if number else GOLD[:10]
        make_run(tmp_path, point.run, {"raw": CHANCE[: len(gold)]}, task=point.settings["tasks"], seed=1, gold=gold)
    said = conclude_sweep(tmp_path / "sweep", record)
    assert said.startswith("no comparison: reviews: runs") and "measured on different rows" in said
    assert (tmp_path / "sweep" / "index.html").is_file()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{RECORD_FILE}.*delete it"):
        read_record(tmp_path)
    assert read_record(tmp_path / "elsewhere") is None


def test_report_compares_runs_on_one_page(tmp_path: Path, run_here: Callable[[str, list[str]], str]) -> None:
    make_run(tmp_path, "plain", {"raw": CHANCE})
    make_run(tmp_path, "better", {"raw": BETTER})
    text = run_here("report", [f"run.dir={tmp_path}", "runs=[plain,better]", "baseline=plain"])
    assert "2 points: 2 done. Baseline: plain." in text
    assert "+41.7 [" in text
    assert text.splitlines()[-1] == f"comparison: {tmp_path}/comparison.html"
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "better" in page and "+41.7" in page
    run_here("report", [f"run.dir={tmp_path}", "runs=[plain,better]", f"output={tmp_path}/two.html"])
    assert (tmp_path / "two.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs=[plain,nowhere]"], "runs: 'nowhere' matches no run"),
        (["runs=[plain]", "baseline=plan"], "baseline: no point or run is 'plan' (did you mean 'plain'?)"),
        (["runs=[plain]", "output=page.md"], "output: page.md is to be a page; name it page.html"),
        (["runs=[begun]"], "runs: no finished run to compare: begun (nothing evaluated)"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    from tests.support.command_line import refused

    make_run(tmp_path, "plain", {"raw": CHANCE})
    (tmp_path / "begun" / "pretrain").mkdir(parents=True)
    refused("report", [f"run.dir={tmp_path}", *words], [said], monkeypatch, capsys)
    assert not (tmp_path / "comparison.html").exists()


def test_a_page_of_many_points_stays_small(tmp_path: Path) -> None:
    points = [PointRecord(number=n, name=f"lr={n}", run=f"sweep/lr={n}", settings={"lr": str(n)}, is_done=True) for n in range(60)]
    for point in points:
        make_run(tmp_path, point.run, {"raw": CHANCE}, seed=1)
    page = comparison_page("many", against(read_points(tmp_path, points), None), tmp_path, tmp_path / "sweep")
    assert len(page.encode()) < 5_000_000


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    record = record_of()
    conclude_sweep(tmp_path / "sweep", replace(record, points=[replace(one, is_done=False) for one in record.points]))
    plain = json.loads((tmp_path / "sweep" / RECORD_FILE).read_text(encoding="utf-8"))
    assert [one["name"] for one in plain["points"]] == [one.name for one in record.points]
    assert issubclass(CheckpointError, AdaptError)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([0.25, 0.5, None, 0.375], "Objective: best at router=top2 with 0.5000."),
        ([0.25] * 4, "Objective: 0.2500 at all 4 points; it depends on nothing that was varied."),
    ],
)
def test_what_a_search_found_is_said(tmp_path: Path, numbers: list[float | None], said: str) -> None:
    record = record_of()
    points = [replace(point, objective=number) for point, number in zip(record.points, numbers, strict=True)]
    text = conclude_sweep(tmp_path / "sweep", replace(record, points=points))
    assert said in text.splitlines()
    assert [row[-2] for row in points_table(read_points(tmp_path, points)).rows] == [
        "-" if number is None else f"{number:.4f}" for number in numbers
    ]


def test_points_of_an_earlier_command_in_a_sweeps_directory_are_compared_too(two_by_two: tuple[Path, SweepRecord]) -> None:
    root, record = two_by_two
    conclude_sweep(root / "sweep", record)
    later = "sweep/tasks=reviews,modelrouter=top2,seed=5"
    make_run(root, later, {"raw": CHANCE}, seed=5)
    points, _ = points_of(root, ["sweep"])
    assert [point.run for point in points] == [*(point.run for point in record.points), later]
    assert points[-1].settings == {"tasks": "reviews", "model/router": "top2", "seed": "5"}
    assert points[-1].name == "tasks=reviews,modelrouter=top2,seed=5"


def test_runs_are_told_apart_by_the_settings_of_their_artifacts(tmp_path: Path, smallest_run: Path) -> None:
    make_run(tmp_path, "one", {"raw": CHANCE}, seed=1)
    make_run(tmp_path, "two", {"raw": CHANCE}, seed=2)
    points, command = points_of(tmp_path, ["one", "two"])
    assert [point.settings for point in points] == [{"seed": "1"}, {"seed": "2"}] and command == ""
    found = settings_of(smallest_run)
    assert "tasks" not in found
    assert found["tokenizer.vocab_size"] == "2400" and found["pretrain.steps"] == "12", sorted(found)


def test_means_over_other_seeds_are_not_compared(tmp_path: Path) -> None:
    record = record_of(seeds=(1, 2))
    write_sweep(tmp_path, record, {(t, r): BETTER if r == "top2" else CHANCE for t in TASKS for r in ROUTERS})

    def over_baseline(points: list[PointRecord]) -> dict[tuple[str, str], str]:
        table = means_table(against(read_points(tmp_path, points), None))
        assert table is not None
        return {(row[0], row[1]): row[-1] for row in table.rows}

    adapted = ("sweep/modelrouter=top2", "adapted")
    assert over_baseline(record.points)[adapted].startswith("+41.7 [")
    killed = replace(record.points[0], is_done=False, error="its process was killed (signal 9)")
    assert over_baseline([killed, *record.points[1:]])[adapted] == "other seeds"
