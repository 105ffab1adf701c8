"""What is stated of hard cases: nothing to label, empty classes, texts too long, words that do not work; criteria; groups."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pseudo_label
import pseudo_label.prompts
import pseudo_label.tasks
from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.core.artifacts import open_artifact
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir, demo_dir
from tests.support.command_line import FP32_SCORES, SMALLEST, digests, on_base, records, refused

RunHere = Callable[[str, list[str]], str]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
LONG = "这篇文章很长很长，说了很多话。" * 60


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def demo_rows(task: str, split: str) -> list[dict[str, Any]]:
    lines = (demo_dir() / "clue" / task / f"{split}.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_task(directory: Path, content: str) -> list[str]:
    """Write a task of a test's own and return the arguments that use it."""
    directory.mkdir(exist_ok=True)
    (directory / "mine.yaml").write_text(content, encoding="utf-8")
    return ["task=mine", f"task_dir={directory}"]


def test_a_task_whose_unlabeled_file_is_empty_is_evaluated_and_submitted_by_the_base(
    smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    def row(number: int, label: str | None) -> dict[str, Any]:
        target = {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 6}
        given = {"id": number, "text": f"小明对老师说，他今天第{number}次迟到了。", "target": target}
        return given if label is None else {**given, "label": label}

    root = tmp_path / "clue" / "cluewsc"
    write_rows(root / "unlabeled.json", [])
    write_rows(root / "dev.json", [row(i, "true" if i % 2 else "false") for i in range(8)])
    write_rows(root / "test.json", [row(i, None) for i in range(5)])
    stages = "stages=[pseudo_label,continue_pretrain,evaluate,export,predict,report]"
    arguments = [*on_base(smallest_run, tmp_path / "runs", "cluewsc"), f"data.root={tmp_path}/clue", stages]
    text = run_here("run", [*arguments, "evaluate.criteria=[sum,pmi]", "pseudo_label.rounds.count=2"])
    assert "no unlabeled rows: nothing to label, the base model will be evaluated as it is" in text
    assert "no pseudo-labels to train on: the base model stands" in text
    place = tmp_path / "runs" / "demo"
    metrics = json.loads((place / "evaluate" / "cluewsc" / "metrics.json").read_text(encoding="utf-8"))
    assert {(line["model"], line["split"], line["n"]) for line in metrics} == {("base", "dev", 8)}
    assert len({line["accuracy"] for line in metrics}) == 1, "nothing was fitted, so every method decides as the raw one"
    submission = (place / "evaluate" / "cluewsc" / "cluewscf_predict.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in submission] == list(range(5))
    assert {json.loads(line)["label"] for line in submission} <= {"true", "false"}
    assert open_artifact((place / "export" / "cluewsc").resolve()).inputs["model"].digest == (
        open_artifact((place / "continue_pretrain" / "cluewsc").resolve()).digest
    )


def test_a_class_that_is_never_predicted_is_said_and_the_stage_ends(smallest_run: Path, tmp_path: Path, run_here: RunHere) -> None:
    arguments = [*on_base(smallest_run, tmp_path, "demo_topics"), "pseudo_label.method=raw", "pseudo_label.collapse_limit=1.0"]
    arguments.append("pseudo_label.teachers=[model]")
    text = run_here("pseudo_label", arguments)
    place = tmp_path / "demo" / "pseudo_label" / "demo_topics"
    metrics = open_artifact(place.resolve()).metrics
    found = records(place / "labels.parquet")
    predicted = {record["label"] for record in found}
    never = [label for label in metrics["selected_by_class"] if label not in predicted]
    assert never, "the smallest base predicts every topic; take another seed"
    assert metrics["empty_classes"] == never
    assert f"no example of {', '.join(never)}" in text
    # The places of an empty class are not given to others.
    quota = -(-round(0.5 * (len(found) - metrics["held_out"])) // 4)
    assert max(metrics["selected_by_class"].values()) <= quota


def test_raw_labels_that_collapse_are_refused(smallest_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    arguments = [*on_base(smallest_run, tmp_path, "demo_topics"), "pseudo_label.method=raw", "pseudo_label.collapse_limit=0.3"]
    arguments.append("pseudo_label.teachers=[model]")
    words = ["task 'demo_topics'", "of 80 raw predictions are", "would collapse", "pseudo_label.method=prior or ensemble"]
    refused("pseudo_label", arguments, words, monkeypatch, capsys)
    assert not (tmp_path / "demo" / "pseudo_label").exists()


PAIR = """
fields: {{title: {{path: title}}, body: {{path: body}}}}
shorten: {shorten}
label_words: {{Negative: 不满意, Positive: 满意}}
prompts:
  reference: {{template: "标题：{{title}}，正文：{{body}}，评价：{{label}}"}}
"""


@pytest.fixture
def long_texts(tmp_path: Path) -> Path:
    """Return a data root with rows that are longer than the context in every split."""
    rows = [{"id": i, "title": f"第{i}篇", "body": f"{i}{LONG if i % 3 == 0 else '不错'}"} for i in range(24)]
    write_rows(tmp_path / "clue" / "mine" / "unlabeled.json", rows)
    write_rows(tmp_path / "clue" / "mine" / "test.json", rows[:6])
    labelled = [{**row, "body": f"嗯{row['body']}", "label": "Positive" if i % 2 else "Negative"} for i, row in enumerate(rows[:6])]
    write_rows(tmp_path / "clue" / "mine" / "dev.json", labelled)
    return tmp_path / "clue"


def test_a_text_longer_than_the_context_walks_and_loses_only_what_may_be_cut(
    long_texts: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    mine = write_task(tmp_path / "tasks", PAIR.format(shorten="[body]"))
    stages = "stages=[pseudo_label,continue_pretrain,evaluate]"
    arguments = [*on_base(smallest_run, tmp_path / "runs", "mine"), *mine, f"data.root={long_texts}", stages]
    run_here("run", [*arguments, "continue_pretrain.epochs=1"])
    opened = open_checkpoint((smallest_run / "pretrain").resolve(), FP32_SCORES)
    place = tmp_path / "runs" / "demo"
    found = {record["line"]: record for record in records(place / "score" / "mine" / "unlabeled-pretrain" / "scores.parquet")}
    words = [len(opened.tokenizer.encode(word)) for word in ("不满意", "满意")]
    assert all(record["tokens"][2::3] == words for record in found.values()), "labels are whole in long texts too"
    task = pseudo_label.tasks.load_task("mine", [tmp_path / "tasks"])
    prompt = pseudo_label.prompts.Prompt(task, "reference", opened.tokenizer, opened.scorer.context_length)
    row = pseudo_label.tasks.read_split(long_texts, task, "unlabeled")[0]
    text = opened.tokenizer.decode(prompt.labelled(row, "Negative").ids_T.tolist())
    assert text.startswith("标题：第0篇，正文：0这篇文章")
    assert text.endswith("，评价：不满意")
    assert len(text) < len(LONG)


def test_a_text_that_may_not_be_cut_is_refused_by_line(
    long_texts: Path, smallest_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    mine = write_task(tmp_path / "tasks", PAIR.format(shorten="[title]"))
    arguments = [*on_base(smallest_run, tmp_path / "runs", "mine"), *mine, f"data.root={long_texts}"]
    words = [f"{long_texts}/mine/unlabeled.json", "line 1:", "does not fit into 128 tokens", "shorten (title)"]
    refused("pseudo_label", arguments, words, monkeypatch, capsys)
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_a_label_word_that_is_another_labels_is_refused(
    smallest_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    mine = write_task(
        tmp_path / "tasks",
        "folder: demo_reviews\nfields: {s: {path: sentence}}\nlabel_words: {Negative: 好, Positive: 好}\n"
        "prompts:\n  reference: {template: '{s}{label}'}\n",
    )
    words = ["mine.yaml", "labels 'Negative' and 'Positive' have the same word '好'", "different ones"]
    refused("pseudo_label", [*on_base(smallest_run, tmp_path / "runs", "mine"), *mine], words, monkeypatch, capsys)
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_a_label_word_that_the_tokenizer_does_not_know_is_refused(
    smallest_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """As a tokenizer without byte fallback would have it: one piece of a word is the unknown one."""
    original = Tokenizer.__init__

    def without_a_piece(self: Tokenizer, *arguments: Any) -> None:
        original(self, *arguments)
        self.unk_id = self.encode("不满意")[-1]

    monkeypatch.setattr(Tokenizer, "__init__", without_a_piece)
    words = ["task 'demo_reviews'", "label word '不满意' has tokens unknown to the tokenizer"]
    refused("pseudo_label", on_base(smallest_run, tmp_path / "runs", "demo_reviews"), words, monkeypatch, capsys)
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_a_broken_line_loses_nothing_from_before(
    copied_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, run_here: RunHere
) -> None:
    links = {path: path.readlink() for path in copied_run.glob("demo/**/*") if path.is_symlink()}
    before = digests(copied_run)
    path = tmp_path / "clue" / "demo_reviews" / "unlabeled.json"
    write_rows(path, demo_rows("demo_reviews", "unlabeled"))
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[41] = lines[41][:-3]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = [*SMALLEST, "task=demo_reviews", f"run.dir={copied_run}"]
    stages = "stages=[pseudo_label,continue_pretrain,evaluate]"
    words = [str(path), "line 42", "not valid JSON", "mend the line"]
    refused("run", [*arguments, stages, f"data.root={tmp_path}/clue"], words, monkeypatch, capsys)
    assert {place: place.readlink() for place in links} == links
    assert {name: digest for name, digest in digests(copied_run).items() if name in before} == before
    assert run_here("run", [*arguments, stages]).count("unchanged, skipped") == 3


def test_a_submission_with_an_id_twice_is_refused_before_anything_is_scored(
    smallest_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, scorings: list[str]
) -> None:
    root = tmp_path / "clue" / "demo_reviews"
    for split in ("unlabeled", "dev"):
        write_rows(root / f"{split}.json", demo_rows("demo_reviews", split)[:20])
    write_rows(root / "test.json", [{**row, "id": row["id"] % 7} for row in demo_rows("demo_reviews", "test")])
    arguments = [*on_base(smallest_run, tmp_path / "runs", "demo_reviews"), f"data.root={tmp_path}/clue"]
    words = [f"{root}/test.json", "line 8", "id 0", "more than once", "line 1"]
    refused("evaluate", arguments, words, monkeypatch, capsys)
    assert scorings == []
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.fixture(scope="module")
def with_few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo topics with dev and few, of different sizes."""
    root = tmp_path_factory.mktemp("few") / "demo_topics"
    dev = demo_rows("demo_topics", "dev")
    write_rows(root / "dev.json", dev[:37])
    write_rows(root / "few.json", dev[37:])
    write_rows(root / "unlabeled.json", demo_rows("demo_topics", "unlabeled")[:60])
    write_rows(root / "test.json", demo_rows("demo_topics", "test"))
    return root.parent


def test_criteria_stand_beside_each_other_and_agree_with_the_accuracies(
    with_few: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    names = ["sum", "mean", "per_character", "perplexity", "total", "pmi", "total_pmi", "channel", "masked_lm"]
    text = run_here("evaluate", [
        *on_base(smallest_run, tmp_path, "demo_topics"), f"data.root={with_few}", f"evaluate.criteria=[{','.join(names)}]",
    ])  # fmt: skip
    place = tmp_path / "demo" / "evaluate" / "demo_topics"
    criteria = json.loads((place / "criteria.json").read_text(encoding="utf-8"))
    assert [line["criterion"] for line in criteria] == names
    assert {(line["model"], line["split"], line["raw"]["n"], line["prior"]["n"]) for line in criteria} == {
        ("base", "dev+few", 60, 60)
    }
    metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
    own = next(line for line in criteria if line["criterion"] == "sum")  # the reference prompt's
    for method in ("raw", "prior"):
        measured = [line for line in metrics if line["method"] == method]
        assert {line["criterion"] for line in measured} == {"sum"}
        assert sum(round(line["accuracy"] * line["n"]) for line in measured) == round(own[method]["accuracy"] * 60)
    table = text[text.index("accuracy on dev + few under the reference prompt") :].splitlines()
    assert table[1].split() == ["task", *names]
    shown = [f"{100 * line['raw']['accuracy']:.1f}/{100 * line['prior']['accuracy']:.1f}" for line in criteria]
    assert table[2].split() == ["demo_topics", *shown]


@pytest.mark.parametrize(
    ("beam", "rule"), [(1, "sequential"), pytest.param(1, "marginal", marks=pytest.mark.slow), (2, "marginal")]
)
def test_coarse_to_fine_says_what_each_step_loses_and_the_export_answers_alike(
    beam: int, rule: str, with_few: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    coarse = [
        f"{stage}.coarse{key}"
        for stage in ("pseudo_label", "evaluate")
        for key in ("_to_fine=true", f".beam={beam}", f".rule={rule}")
    ]
    text = run_here("run", [
        *on_base(smallest_run, tmp_path, "demo_topics"), f"data.root={with_few}", *coarse,
        f"stages=[pseudo_label,evaluate,export{',predict,report' if rule == 'sequential' else ''}]",
    ])  # fmt: skip
    place = tmp_path / "demo" / "evaluate" / "demo_topics"
    metrics = {(line["split"], line["method"]): line for line in json.loads((place / "metrics.json").read_text(encoding="utf-8"))}
    losses = json.loads((place / "coarse_to_fine.json").read_text(encoding="utf-8"))
    assert {(line["split"], line["method"]) for line in losses} == {k for k in metrics if k[1] not in ("lexical", "combined")}
    for line in losses:
        measured = metrics[line["split"], line["method"]]
        assert (line["beam"], line["rule"]) == (beam, rule)
        assert line["n"] == measured["n"] == line["right"] + line["lost_at_coarse"] + line["lost_at_fine"]
        assert line["right"] == round(measured["accuracy"] * measured["n"])
        assert line["right"] - line["right_flat"] == line["mended"] - line["spoilt"]
        if beam == 2:
            assert line["lost_at_coarse"] == 0, "every group is followed"
    assert "lost_at_coarse" in text
    selected = [
        record for record in records(tmp_path / "demo" / "pseudo_label" / "demo_topics" / "labels.parquet") if record["is_selected"]
    ]
    assert selected
    written = (place / "dev_demo_topics_predict.json").read_text(encoding="utf-8").splitlines()
    predictor = pseudo_label.load(tmp_path / "demo" / "export" / "demo_topics", FP32_SCORES)
    answers = predictor.predict(demo_rows("demo_topics", "dev")[:37])
    assert [answer.label for answer in answers] == [json.loads(line)["label"] for line in written]


def test_coarse_to_fine_without_a_tree_is_said_to_have_no_effect(smallest_run: Path, tmp_path: Path, run_here: RunHere) -> None:
    text = run_here("pseudo_label", [*on_base(smallest_run, tmp_path, "demo_reviews"), "pseudo_label.coarse_to_fine=true"])
    assert "demo_reviews has no label_tree: its labels are ranked all at once" in text


def test_a_decision_is_exported_only_with_the_task_and_the_model_it_was_fitted_for(
    copied_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, run_here: RunHere
) -> None:
    arguments = [*SMALLEST, "task=demo_topics", f"run.dir={copied_run}"]
    assert "skipped" in run_here("export", arguments)
    (tmp_path / "tasks").mkdir()
    text = (conf_dir() / "task" / "demo_topics.yaml").read_text(encoding="utf-8")
    turned = re.sub("label_words: .*", "label_words: {food: 美食, tech: 科技, finance: 财经, sports: 体育}", text, count=1)
    (tmp_path / "tasks" / "demo_topics.yaml").write_text(turned, encoding="utf-8")
    words = ["evaluated another version of task 'demo_topics'", "pipelines.evaluate"]
    refused("export", [*arguments, f"task_dir={tmp_path}/tasks"], words, monkeypatch, capsys)
    (copied_run / "demo" / "continue_pretrain" / "demo_topics").unlink()
    refused("export", arguments, ["evaluated another model", "pipelines.evaluate"], monkeypatch, capsys)
