"""`label_tree` proposes a tree that a task file takes, says how it agrees with the one there is, and refuses what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from adapt.core.artifacts import open_artifact
from pipelines.config.locations import conf_dir
from pseudo_label.tasks import load_task
from tests.support.command_line import SMALL_DEMO, SMALLEST, in_process
from tests.support.hf_checkpoints import make_checkpoint

TOPICS = {"sports", "finance", "tech", "food"}


def command_of(smallest_run: Path, runs: Path, *more: str) -> list[str]:
    """Return a command line on the smallest base; `more` overrides keys of it."""
    given = dict(
        a.split("=", 1) for a in [*SMALLEST, "tasks=[demo_topics]", f"checkpoint={smallest_run}/pretrain", f"run.dir={runs}", *more]
    )
    return [f"{key}={value}" for key, value in given.items()]


def refused(arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that the command is refused in one line that says all of `words`."""
    code, text = in_process("label_tree", arguments, monkeypatch, capsys)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), text
    assert "Traceback" not in text
    for word in words:
        assert word in errors[0]


def proposed(runs: Path, task: str = "demo_topics") -> dict[str, list[str]]:
    text = (runs / "demo" / "label_tree" / task / "label_tree.yaml").read_text(encoding="utf-8")
    tree: dict[str, list[str]] = yaml.safe_load(text)["label_tree"]
    return tree


@pytest.mark.parametrize("source", ["embeddings", "confusions"])
def test_a_proposed_tree_is_printed_and_fits_the_task_file(
    source: str, smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command_of(smallest_run, tmp_path, f"label_tree.source={source}", "label_tree.rows=60")
    code, text = in_process("label_tree", arguments, monkeypatch, capsys)
    assert code == 0, text
    tree = proposed(tmp_path)
    assert len(tree) == 2, "as many groups as the task has"
    assert {label for labels in tree.values() for label in labels} == TOPICS
    own = conf_dir() / "task" / "demo_topics.yaml"
    words = load_task("demo_topics", [own.parent]).label_words
    assert all(word in [words[label] for label in labels] for word, labels in tree.items())
    for said in ("label_tree:\n", *tree, "adjusted Rand index with the task's own 2 groups", "until it is pasted"):
        assert said in text
    content = yaml.safe_load(own.read_text(encoding="utf-8")) | {"label_tree": tree}
    (tmp_path / "pasted.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert load_task("pasted", [tmp_path]).label_tree == tree
    scored = list(tmp_path.glob("demo/score/demo_topics/*"))
    assert [place.name for place in scored] == ([] if source == "embeddings" else ["unlabeled-pretrain"])


def test_the_same_command_again_only_prints(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command_of(smallest_run, tmp_path)
    first = in_process("label_tree", arguments, monkeypatch, capsys)[1]
    again = in_process("label_tree", arguments, monkeypatch, capsys)[1]
    assert "unchanged, skipped" in again
    assert first[first.index("# Proposed") :] == again[again.index("# Proposed") :]


@pytest.mark.parametrize("source", ["embeddings", "confusions"])
def test_the_order_of_labels_in_the_task_file_does_not_matter(
    source: str, smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((conf_dir() / "task" / "demo_topics.yaml").read_text(encoding="utf-8"))
    content["folder"] = "demo_topics"
    trees = []
    for name, labels in {"forth": ["sports", "food", "tech", "finance"], "back": ["food", "finance", "sports", "tech"]}.items():
        words = {label: content["label_words"][label] for label in labels}
        text = yaml.safe_dump(content | {"label_words": words, "label_tree": None}, allow_unicode=True, sort_keys=False)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        more = [f"tasks=[{name}]", f"task_dir={tmp_path}", f"label_tree.source={source}", "label_tree.rows=40"]
        code, text = in_process("label_tree", command_of(smallest_run, tmp_path / name, *more), monkeypatch, capsys)
        assert code == 0, text
        assert "adjusted Rand" not in text, "there is no tree to agree with"
        trees.append({word: set(group) for word, group in proposed(tmp_path / name, name).items()})
    assert trees[0] == trees[1]


def test_labelled_rows_may_have_a_share_in_the_likeness(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["label_tree.source=confusions", "label_tree.rows=40", "label_tree.labelled_weight=1", "label_tree.groups=3"]
    code, text = in_process("label_tree", command_of(smallest_run, tmp_path, *more), monkeypatch, capsys)
    assert code == 0, text
    artifact = open_artifact((tmp_path / "demo" / "label_tree" / "demo_topics").resolve())
    assert artifact.metrics["between"] >= 0, "shares of mistakes, no correlations"
    assert len(proposed(tmp_path)) == 3
    assert {place.name for place in (tmp_path / "demo" / "score" / "demo_topics").iterdir()} == {
        "unlabeled-pretrain",
        "dev-pretrain",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tasks=[chid]"], ["chid", "bring their own candidates"]),
        (["tasks=[demo_reviews]"], ["demo_reviews", "2 labels", "at least 3"]),
        (["label_tree.groups=4"], ["label_tree.groups", "take 2 to 3"]),
        (["label_tree.max_size=1"], ["label_tree.max_size", "at least 2"]),
        (["label_tree.min_size=3"], ["label_tree.min_size", "take 1 to 2"]),
        (["label_tree.source=guesses"], ["label_tree.source", "guesses", "embeddings, confusions"]),
        (["label_tree.labelled_weight=2"], ["label_tree.labelled_weight", "0 to 1"]),
        (["label_tree.labelled_weight=0.5"], ["label_tree.labelled_weight", "label_tree.source=confusions"]),
        (["label_tree.rows=0"], ["label_tree.rows: 0", "2 or more"]),
        (["checkpoint=/nowhere/at/all"], ["/nowhere/at/all"]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: list[str], smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    refused(command_of(smallest_run, tmp_path, *arguments), words, monkeypatch, capsys)
    assert not list(tmp_path.glob("**/manifest.json"))


def test_a_task_without_unlabeled_rows_is_told_what_to_do(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SMALL_DEMO, tmp_path / "clue")
    (tmp_path / "clue" / "demo_topics" / "unlabeled.json").write_text("", encoding="utf-8")
    given = command_of(smallest_run, tmp_path / "runs", f"data.root={tmp_path}/clue", "label_tree.source=confusions")
    refused(given, ["demo_topics", "0 unlabeled rows", "label_tree.source=embeddings"], monkeypatch, capsys)
    given = command_of(smallest_run, tmp_path / "runs", "data.root=null")
    assert in_process("label_tree", given, monkeypatch, capsys)[0] == 0, "embeddings read no data"


def test_both_commands_take_a_base_from_hugging_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base", "olmoe")
    arguments = ["task=demo_topics", f"data.root={SMALL_DEMO}", f"checkpoint={base}", f"run.dir={tmp_path}/runs"]
    rows = ["prompt_search.rows=10", "prompt_search.labelled_rows=10"]
    for stage, more in {"label_tree": [], "prompt_search": rows}.items():
        code, text = in_process(stage, [*arguments, *more], monkeypatch, capsys)
        assert code == 0, text
    tree = yaml.safe_load((tmp_path / "runs/default/label_tree/demo_topics/label_tree.yaml").read_text(encoding="utf-8"))
    assert {label for labels in tree["label_tree"].values() for label in labels} == TOPICS


def test_a_run_does_not_propose_trees_or_judge_prompts(smallest_run: Path) -> None:
    assert not (smallest_run / "label_tree").exists()
    assert not (smallest_run / "prompt_search").exists()
    config = json.loads((smallest_run / "pseudo_label" / "demo_topics" / "manifest.json").read_text(encoding="utf-8"))["config"]
    assert set(config) & {"label_tree", "prompt_search"} == set()
