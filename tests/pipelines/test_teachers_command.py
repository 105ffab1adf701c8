"""Teachers and the lexical labeller from the command line: what labels, what stands in the tables, and what exports carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pseudo_label
from adapt.core.artifacts import open_artifact
from adapt.core.spans import Span
from pipelines.config.locations import conf_dir
from pipelines.stages import pseudo_label as label_stage
from pipelines.stages import teacher_panel
from pipelines.stages.run import Run as PipelineRun
from pseudo_label.store import LABELS_FILE, SCORES_FILE
from pseudo_label.tasks import load_task, row_from
from pseudo_label.teachers import lexical_files
from tests.support.command_line import FP32_SCORES, SMALL_DEMO, composed, on_base, records, refused

TASK = "demo_topics"
Run = Callable[[str, list[str]], str]


def gold(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SMALL_DEMO / TASK / f"{split}.json").read_text(encoding="utf-8").splitlines()]


def test_without_the_model_as_a_teacher_no_unlabeled_row_is_scored(smallest_run: Path, tmp_path: Path, run_here: Run) -> None:
    run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), "pseudo_label.teachers=[lexical]"])
    assert {row["method"] for row in records(tmp_path / "demo" / "pseudo_label" / TASK / LABELS_FILE)} == {"lexical"}
    assert not (tmp_path / "demo" / "score").exists()
    assert (tmp_path / "demo" / "lexical" / TASK / "lexical.json").is_file()


def test_labels_of_a_file_are_taken_where_it_names_the_row(smallest_run: Path, tmp_path: Path, run_here: Run) -> None:
    rows = gold("unlabeled")  # of which a sample is labelled
    wanted = [["sports", "finance", "tech", "food"][place % 4] for place in range(len(rows))]
    lines = [json.dumps({"id": row["id"], "label": label}) for row, label in zip(rows, wanted, strict=True)]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines), encoding="utf-8")
    own = ["pseudo_label.teachers=[file]", f"pseudo_label.teacher_file={tmp_path}/labels.jsonl"]
    text = run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), *own])
    # Its ids are those of unlabeled rows: dev has rows of the same ids.
    assert "the file of labels is not measured; it has no text of dev" in text
    assert open_artifact((tmp_path / "demo" / "pseudo_label" / TASK).resolve()).metrics["measured"] == {}
    labels = records(tmp_path / "demo" / "pseudo_label" / TASK / LABELS_FILE)
    assert len(labels) == 80
    assert all(row["label"] == wanted[row["line"] - 1] for row in labels)


def test_every_teacher_has_an_estimate_beside_its_measured_accuracy(smallest_run: Path, tmp_path: Path, run_here: Run) -> None:
    text = run_here(
        "pseudo_label",
        [
            *on_base(smallest_run, tmp_path, TASK),
            "pseudo_label.teachers=[model,lexical,embedding]",
            "pseudo_label.weighting=estimated",
        ],
    )
    metrics = open_artifact((tmp_path / "demo" / "pseudo_label" / TASK).resolve()).metrics
    assert set(metrics["teachers"]) == {"model", "lexical", "embedding"}
    assert set(metrics["measured"]) == {"model", "lexical", "embedding", "together"}
    assert all(0 < teacher["estimated"] < 1 and teacher["weight"] > 0 for teacher in metrics["teachers"].values())
    assert "estimated" in text and "together" in text


@pytest.mark.parametrize(("own", "ratio"), [([], 4.0), (["pseudo_label.teacher_weights={model: 2.0}"], 2.0)])
def test_the_lexical_teacher_counts_four_times(
    own: list[str], ratio: float, smallest_run: Path, tmp_path: Path, run_here: Run
) -> None:
    run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), *own])
    weights = {
        n: t["weight"] for n, t in open_artifact((tmp_path / "demo" / "pseudo_label" / TASK).resolve()).metrics["teachers"].items()
    }
    assert weights["lexical"] / weights["model"] == pytest.approx(ratio)
    assert sum(weights.values()) == pytest.approx(2)


def test_another_encoder_at_the_same_place_makes_other_labels(smallest_run: Path, tmp_path: Path) -> None:
    link, digests = tmp_path / "encoder", set()
    for stage in ("pretrain", f"continue_pretrain/{TASK}"):
        link.unlink(missing_ok=True)
        link.symlink_to((smallest_run / stage).resolve())
        own = ["pseudo_label.teachers=[lexical,embedding]", f"pseudo_label.encoder={link}", f"tasks=[{TASK}]"]
        shared = [word for word in on_base(smallest_run, tmp_path, TASK) if not word.startswith("task=")]
        run = PipelineRun(composed("pseudo_label", [*shared, *own]))
        digests.add(label_stage.STAGE.key(label_stage.STAGE.reads(run, run.tasks()[0])).digest())
    assert len(digests) == 2


@pytest.mark.parametrize(("rounds", "is_taught"), [(0, False), (2, True)])
def test_a_lexical_labeller_that_does_not_teach_itself_is_not_taught(
    rounds: int, is_taught: bool, smallest_run: Path, tmp_path: Path, run_here: Run
) -> None:
    (tmp_path / "tasks").mkdir()
    text = (conf_dir() / "task" / f"{TASK}.yaml").read_text(encoding="utf-8")
    (tmp_path / "tasks" / f"{TASK}.yaml").write_text(f"{text}lexical: {{rounds: {rounds}}}\n", encoding="utf-8")
    own = [f"task_dir={tmp_path}/tasks", "pseudo_label.teachers=[lexical,embedding]"]
    text = run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), *own])
    taught = open_artifact((tmp_path / "demo" / "pseudo_label" / TASK).resolve()).metrics["taught"]
    assert (bool(taught) or "of teaching taken back" in text) is is_taught


def test_the_lexical_labeller_is_a_row_of_every_table(smallest_run: Path) -> None:
    table = open_artifact((smallest_run / "evaluate" / TASK).resolve()).metrics["table"]
    who = [(row["model"], row["method"]) for row in table]
    assert who[0] == ("lexical", "lexical")
    assert who.count(("lexical", "lexical")) == 1
    assert ("base", "combined") in who and ("adapted", "combined") in who and ("adapted", "lexical") in who
    assert "lexical" in (smallest_run.parent / "output.txt").read_text(encoding="utf-8")
    assert "lexical" in (smallest_run / "report" / "report.html").read_text(encoding="utf-8")


def test_an_export_answers_as_evaluation_did_with_the_lexical_labeller_it_carries(smallest_run: Path) -> None:
    answers = json.loads((smallest_run / "evaluate" / TASK / "answers.json").read_text(encoding="utf-8"))
    wanted = next(line["answers"] for line in answers if (line["model"], line["method"]) == ("adapted", "combined"))
    predictor = pseudo_label.load(smallest_run / "export" / TASK, FP32_SCORES)
    assert (smallest_run / "export" / TASK / "lexical.safetensors").is_file()
    assert [answer.label for answer in predictor.predict(gold("dev"))] == wanted


def test_the_labeller_that_others_taught_answers_for_the_adapted_model(smallest_run: Path) -> None:
    labels, evaluated = (open_artifact((smallest_run / stage / TASK).resolve()) for stage in ("pseudo_label", "evaluate"))
    assert labels.metrics["taught"]
    taught = labels.file("lexical.safetensors").read_bytes()
    untaught = (smallest_run / "lexical" / TASK / "lexical.safetensors").read_bytes()
    assert taught != untaught
    assert (smallest_run / "continue_pretrain" / TASK / "lexical" / TASK / "lexical.safetensors").read_bytes() == taught
    assert (smallest_run / "export" / TASK / "lexical.safetensors").read_bytes() == taught
    task = load_task(TASK, [conf_dir() / "task"])
    answers = {(line["model"], line["method"]): line["answers"] for line in json.loads(evaluated.file("answers.json").read_text())}
    for who, place in (("adapted", labels.path), ("lexical", smallest_run / "lexical" / TASK)):
        rows = gold("dev")
        scores = lexical_files.load(place, task).scores([row_from(row, task, "dev", 1) for row in rows])
        assert answers[who, "lexical"] == [task.labels[i] for i in scores.argmax(axis=1)]


def test_an_export_of_the_lexical_method_answers_without_the_model(smallest_run: Path, tmp_path: Path, run_here: Run) -> None:
    own = [
        *on_base(smallest_run, tmp_path, TASK),
        "evaluate.method=lexical",
        "evaluate.methods=[lexical]",
        "stages=[evaluate,export]",
    ]
    run_here("run", own)
    answers = json.loads((tmp_path / "demo" / "evaluate" / TASK / "answers.json").read_text(encoding="utf-8"))
    assert [line["method"] for line in answers] == ["lexical"]
    assert not (tmp_path / "demo" / "score").exists()
    predictor = pseudo_label.load(tmp_path / "demo" / "export" / TASK, FP32_SCORES)
    assert [answer.label for answer in predictor.predict(gold("dev"))] == answers[0]["answers"]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (["pseudo_label.teachers=[]"], ["pseudo_label", "teachers", "empty"]),
        (["pseudo_label.teachers=[model,model]"], ["teachers", "twice"]),
        (["pseudo_label.teachers=[oracle]"], ["pseudo_label.teachers", "oracle"]),
        (["pseudo_label.teacher_weights={rules: 1.0}"], ["teacher_weights", "rules"]),
        (["pseudo_label.teacher_weights={lexical: 0.0}"], ["teacher_weights.lexical: 0", "more than 0"]),
        (["pseudo_label.teacher_weights={lexical: 2.0}", "pseudo_label.weighting=estimated"], ["teacher_weights", "weighting"]),
        (["pseudo_label.method=combined"], ["method=combined", "teachers"]),
        (["pseudo_label.teachers=[rules]"], ["teachers", "no rules"]),
        (["pseudo_label.teachers=[file]"], ["teacher_file", "not set"]),
        (["pseudo_label.teachers=[file]", "pseudo_label.teacher_file=nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["evaluate.lexical_weight=0"], ["evaluate.lexical_weight: 0", "more than 0"]),
        (["pseudo_label.shortlist=1"], ["pseudo_label", "shortlist", "2 or more"]),
        (["pseudo_label.shortlist=2", "pseudo_label.teachers=[model]"], ["shortlist", "lexical"]),
        (["evaluate.shortlist=2", "evaluate.coarse_to_fine=true"], ["evaluate", "shortlist", "coarse_to_fine"]),
    ],
)
def test_teachers_that_cannot_serve_are_refused(
    smallest_run: Path,
    tmp_path: Path,
    own: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), *own], words, monkeypatch, capsys)


def test_the_lexical_teacher_leaves_the_model_a_shortlist(
    smallest_run: Path, tmp_path: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows beyond those that the decision is fitted on are scored under their shortlist only; answers stay within it."""
    monkeypatch.setattr(teacher_panel, "_ROWS_IN_FULL", 30)
    run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), "pseudo_label.shortlist=2"])
    labels = records(tmp_path / "demo" / "pseudo_label" / TASK / LABELS_FILE)
    assert all(np.isfinite(row["scores"]).sum() == 2 for row in labels)
    scored = records(next((tmp_path / "demo" / "score" / TASK).glob("unlabeled-*")) / SCORES_FILE)
    n_asked = [np.isfinite(np.reshape(row["sums"], (-1, 3))[:4, Span.LABEL]).sum() for row in scored]
    n_prompts = len({row["prompt"] for row in scored})
    assert (n_asked.count(4), n_asked.count(2)) == (30 * n_prompts, 50 * n_prompts)


def test_an_export_with_a_shortlist_answers_as_evaluation_did(smallest_run: Path, tmp_path: Path, run_here: Run) -> None:
    own = ["evaluate.shortlist=2", "evaluate.methods=[combined]"]
    run_here("run", [*on_base(smallest_run, tmp_path, TASK), *own, "stages=[evaluate,export]"])
    wanted = json.loads((tmp_path / "demo" / "evaluate" / TASK / "answers.json").read_text(encoding="utf-8"))
    predictor = pseudo_label.load(tmp_path / "demo" / "export" / TASK, FP32_SCORES)
    assert predictor.spec.decision.shortlist == 2
    for found in wanted:
        answers = predictor.predict(gold(found["split"]))
        assert [answer.label for answer in answers] == found["answers"]
        assert all(sum(p > 0 for p in answer.probabilities.values()) == 2 for answer in answers)


def test_a_given_prior_is_kept_to_by_labels_and_selection(smallest_run: Path, tmp_path: Path, run_here: Run) -> None:
    text = (conf_dir() / "task" / f"{TASK}.yaml").read_text(encoding="utf-8")
    first, *others = load_task(TASK, [conf_dir() / "task"]).labels
    shares = ", ".join([f"{first}: 0.7", *(f"{label}: 0.1" for label in others)])
    (tmp_path / f"{TASK}.yaml").write_text(f"{text}prior: {{{shares}}}\n", encoding="utf-8")
    run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), f"task_dir={tmp_path}", "pseudo_label.teachers=[model]"])
    labels = records(tmp_path / "demo" / "pseudo_label" / TASK / LABELS_FILE)
    share = [row["label"] for row in labels].count(first) / len(labels)
    chosen = [row["label"] for row in labels if row["is_selected"]]
    assert share > 0.5
    assert chosen.count(first) > len(chosen) / 2


def test_estimates_are_of_teachers_that_have_not_learnt_from_each_other(smallest_run: Path, tmp_path: Path, run_here: Run) -> None:
    """After a round of teaching they agree more, whoever is right."""
    estimates = []
    for rounds in (0, 1):
        run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), f"pseudo_label.teaching_rounds={rounds}"])
        metrics = open_artifact((tmp_path / "demo" / "pseudo_label" / TASK).resolve()).metrics
        assert len(metrics["taught"]) == rounds
        estimates.append({name: teacher["estimated"] for name, teacher in metrics["teachers"].items()})
    assert estimates[0] == estimates[1]


def test_a_student_of_several_teachers_counts_more_beside_the_lexical_labeller(
    smallest_run: Path, tmp_path: Path, run_here: Run
) -> None:
    place = smallest_run / "evaluate" / TASK / "decision.json"
    assert json.loads(place.read_text(encoding="utf-8"))["decision"]["lexical_weight"] == 2.0
    for more, weight in (([], 4.0), (["evaluate.lexical_weight=3"], 3.0)):
        run_here("evaluate", [*on_base(smallest_run, tmp_path, TASK), *more])
        decided = json.loads((tmp_path / "demo" / "evaluate" / TASK / "decision.json").read_text(encoding="utf-8"))
        assert decided["decision"]["lexical_weight"] == weight
