"""A result is taken as it is only where all that it was made from is unchanged: corpus files, rows, exports, stages' versions."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapt.checkpoint.weights import save_model
from adapt.core.artifacts import StageKey
from adapt.core.errors import DataError
from adapt.core.runtime import RankInfo
from adapt.core.typed import to_plain
from adapt.model.gpt import GPT
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir, demo_dir
from pipelines.config.schema import DataConfig
from pipelines.stages import continue_pretrain, tokenizer
from pipelines.stages.contract import order_of
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.evaluate import adapted_artifact
from pipelines.stages.run import Run
from pseudo_label.decision import Method, fit_decision
from pseudo_label.labelling import ScoringConfig
from pseudo_label.predictor import PredictorSpec, save_spec
from pseudo_label.store import LABELS_FILE, Provenance, PseudoLabel, reading_digest, write_labels
from pseudo_label.tasks import load_task, read_split
from tests.support.command_line import ROOT, composed, in_process, refused

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a corpus of two files that have one name, in two directories."""
    place = tmp_path / "corpus"
    lines = (demo_dir() / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()
    for name, some in (("a", lines[:160]), ("b", lines[160:])):
        (place / name).mkdir(parents=True)
        (place / name / "news.txt").write_text("\n".join(some) + "\n", encoding="utf-8")
    return place


def digests_of(place: Path) -> dict[str, str]:
    return CorpusReads.of(DataConfig(corpus=[f"{place}/*/news.txt"])).files.digests()


def test_files_of_one_name_in_two_directories_both_count(corpus: Path) -> None:
    first = digests_of(corpus)
    assert len(first) == 2
    seen = [first]
    for name in ("a", "b"):
        (corpus / name / "news.txt").write_text(f"另一篇文章 {name}\n", encoding="utf-8")
        seen.append(digests_of(corpus))
        assert seen.count(seen[-1]) == 1


def test_the_order_of_corpus_files_counts_and_their_place_does_not(corpus: Path, tmp_path: Path) -> None:
    first = digests_of(corpus)
    assert digests_of(Path(shutil.copytree(corpus, tmp_path / "elsewhere" / "moved"))) == first
    (corpus / "a" / "news.txt").rename(corpus / "a" / "old")
    (corpus / "b" / "news.txt").rename(corpus / "a" / "news.txt")
    (corpus / "a" / "old").rename(corpus / "b" / "news.txt")
    assert sorted(digests_of(corpus).values()) == sorted(first.values())
    assert digests_of(corpus) != first


def test_a_change_of_one_of_two_files_of_a_name_trains_another_tokenizer(
    corpus: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    arguments = [f"data.corpus=['{corpus}/*/news.txt']", "tokenizer.vocab_size=2400", f"run.dir={tmp_path}/runs"]
    for changes, word in [(False, "documents"), (False, "unchanged, skipped"), (True, "documents"), (False, "unchanged, skipped")]:
        if changes:
            file = corpus / "a" / "news.txt"
            file.write_text(file.read_text(encoding="utf-8").replace("的", "地"), encoding="utf-8")
        code, text = in_process("tokenizer", arguments, monkeypatch, capsys)
        assert code == 0, text
        assert word in text
    run = Run(composed("tokenizer", arguments))
    assert tokenizer.STAGE.key(tokenizer.STAGE.reads(run, None)).digest() == run.require("tokenizer").key


class Stopped(Exception):
    """Ends a build where training would start."""


TASK = "demo_reviews"
TEXTS = ["味道很好", "太慢了", "还可以", "太慢了", "不会再来", "味道很好"]
LABELS = ["Positive", "Negative", "Positive", "Negative", "Negative", "Positive"]


@pytest.fixture
def labelled(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer) -> list[str]:
    """Return the arguments of a run with a base, six unlabeled rows of which two repeat, and a label for each of them."""
    base = tmp_path / "base"
    base.mkdir()
    save_model(base, sparse_model.config, sparse_model.named_parameters(), tokenizer)
    write_texts(tmp_path, TEXTS)
    shutil.copy(demo_dir() / "clue" / TASK / "dev.json", tmp_path / "clue" / TASK)
    arguments = [f"task={TASK}", f"data.root={tmp_path}/clue", f"checkpoint={base}", f"run.dir={tmp_path}/runs", "engine=cpu"]
    run = Run(composed("continue_pretrain", with_list(arguments)))
    task = load_task(TASK, [conf_dir() / "task"])
    rows = read_split(tmp_path / "clue", task, "unlabeled")
    sure: dict[str, Any] = {"margin": 1.0, "confidence": 1.0, "agreement": 1.0, "labels": [], "scores": [], "probabilities": []}

    def build(result: Path, work: Path) -> dict[str, Any]:
        labels = [
            PseudoLabel(text_digest=reading_digest(row), line=row.line, label=label, is_selected=True, is_held_out=False, **sure)
            for row, label in zip(rows, LABELS, strict=True)
        ]
        write_labels(result / LABELS_FILE, task, rows, labels, Provenance(prompt="", criterion="", method="", checkpoint=""))
        return {"rows": len(rows), "selected": len(rows), "held_out": 0}

    made_for = {"task": to_plain(task), "task_order": order_of(task)}
    key = StageKey(stage="pseudo_label", config=made_for, inputs={"base": run.base()})
    run.workshop.produce(key, build, f"pseudo_label/{TASK}")
    return arguments


def with_list(arguments: list[str]) -> list[str]:
    """Spell `task=NAME` as Hydra itself knows it."""
    return [f"tasks=[{TASK}]" if argument == f"task={TASK}" else argument for argument in arguments]


def write_texts(place: Path, texts: list[str]) -> None:
    file = place / "clue" / TASK / "unlabeled.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": i, "sentence": text}, ensure_ascii=False) for i, text in enumerate(texts)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def readings_of(arguments: list[str], place: Path, monkeypatch: Patch) -> list[str]:
    """Return what a rank would train on, as text."""
    import adapt.train.job

    seen: list[str] = []

    def stop(model: object, tokenizer: Tokenizer, data: adapt.train.job.TrainData, job: object, *_: object) -> None:
        rows = [data.training.row(index, 0) for index in range(len(data.training))]
        seen.extend(tokenizer.decode(reading.inputs_T[1:].tolist()) for row in rows for reading in row)
        raise Stopped

    monkeypatch.setattr(adapt.train.job, "run_training", stop)
    first_rank = RankInfo(rank=0, world_size=1, local_rank=0)
    monkeypatch.setattr(continue_pretrain, "launch", lambda job, *_: continue_pretrain.train_rank(job, first_rank))
    run = Run(composed("continue_pretrain", with_list(arguments)))
    stage = continue_pretrain.STAGE
    reads = stage.reads(run, load_task(TASK, [conf_dir() / "task"]))
    with pytest.raises(Stopped):
        stage.build(reads, run.workshop, place / "result", place / "work")
    return seen


def test_labels_stay_with_their_texts_when_the_lines_are_turned_round(
    labelled: list[str], tmp_path: Path, monkeypatch: Patch
) -> None:
    before = readings_of(labelled, tmp_path, monkeypatch)
    words = {"Positive": "满意", "Negative": "不满意"}
    for text, label in zip(TEXTS, LABELS, strict=True):
        same = [reading for reading in before if reading.startswith(text)]
        assert len(same) == TEXTS.count(text)
        assert all(reading.endswith(words[label]) and reading.endswith("不满意") == (label == "Negative") for reading in same)
    write_texts(tmp_path, TEXTS[::-1])
    assert readings_of(labelled, tmp_path, monkeypatch) == before


def test_a_labelled_row_that_is_gone_is_refused(labelled: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    write_texts(tmp_path, TEXTS[1:])
    with pytest.raises(DataError, match=r"demo_reviews/unlabeled\.json: lacks the row .* pipelines\.pseudo_label"):
        readings_of(labelled, tmp_path, monkeypatch)


def test_a_bare_export_answers_anew_when_it_is_told_to_answer_otherwise(
    tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, monkeypatch: Patch, capsys: Capture
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    save_model(export, sparse_model.config, sparse_model.named_parameters(), tokenizer)
    task = load_task(TASK, [conf_dir() / "task"])
    decision = fit_decision(Method.RAW, [], task)
    save_spec(export, PredictorSpec(task=task, scoring=ScoringConfig(), decision=decision))
    rows, output = tmp_path / "rows.jsonl", tmp_path / "labels.jsonl"
    rows.write_text("".join(json.dumps({"sentence": text}, ensure_ascii=False) + "\n" for text in TEXTS), encoding="utf-8")
    arguments = [f"checkpoint={export}", f"input={rows}", f"output={output}", f"run.dir={tmp_path}/runs"]

    def answers() -> tuple[list[str], bool]:
        code, text = in_process("predict", arguments, monkeypatch, capsys)
        assert code == 0, text
        lines = output.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prediction"] for line in lines], "unchanged, skipped" in text

    first, was_skipped = answers()
    assert not was_skipped
    assert answers() == (first, True)
    spec = json.loads((export / "predictor.json").read_text(encoding="utf-8"))
    words = spec["task"]["label_words"]
    spec["task"]["label_words"] = {"Good": words["Positive"], "Bad": words["Negative"]}
    spec["task"]["prompts"] = {name: {**p, "label_words": None} for name, p in spec["task"]["prompts"].items()}
    (export / "predictor.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    second, was_skipped = answers()
    assert not was_skipped
    assert set(second) <= {"Good", "Bad"}


def adapted_by_hand(arguments: list[str]) -> Path:
    """Give a run an adaptation and an evaluation of it, as far as later stages look at them before they work; return the former."""
    run = Run(composed("continue_pretrain", with_list(arguments)))

    def build(result: Path, work: Path) -> dict[str, Any]:
        (result / "model.safetensors").write_bytes(b"weights")
        return {"is_adapted": True}

    adapted = run.workshop.produce(
        StageKey(stage="continue_pretrain", config={}, inputs={"base": run.base()}), build, f"continue_pretrain/{TASK}"
    )
    run.workshop.produce(StageKey(stage="evaluate", config={}, inputs={"base": run.base()}), build, f"evaluate/{TASK}")
    return adapted.path


@pytest.mark.parametrize("stage", ["evaluate", "export"])
@pytest.mark.parametrize("damage", ["no manifest", "no directory", "no weights", "half a manifest"])
def test_an_adaptation_that_is_not_whole_is_not_taken_for_none(
    stage: str, damage: str, labelled: list[str], monkeypatch: Patch, capsys: Capture
) -> None:
    place = adapted_by_hand(labelled)
    words = [str(place), "again"]
    if damage == "no manifest":
        (place / "manifest.json").unlink()
        words = [
            f"continue_pretrain/{TASK}: is incomplete",
            f"`python -m pipelines.continue_pretrain run.name=default task={TASK}` again",
        ]
    elif damage == "no directory":
        shutil.rmtree(place)
        words = [f"continue_pretrain/{TASK}: its artifact is gone", "`python -m pipelines.continue_pretrain"]
    elif damage == "no weights":
        (place / "model.safetensors").unlink()
        words.append("model.safetensors is missing")
    else:
        (place / "manifest.json").write_text("{", encoding="utf-8")
        words.append("manifest.json: not valid JSON")
    refused(stage, labelled, words, monkeypatch, capsys)


def test_a_run_that_never_adapted_is_evaluated_by_its_base(labelled: list[str]) -> None:
    run = Run(composed("evaluate", with_list(labelled)))
    assert adapted_artifact(run, load_task(TASK, [conf_dir() / "task"]), run.base()) is None


def test_a_new_version_of_an_algorithm_makes_its_results_anew(corpus: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    run = Run(composed("tokenizer", [f"data.corpus=['{corpus}/*/news.txt']", f"run.dir={tmp_path}/runs"]))
    before = tokenizer.STAGE.key(tokenizer.STAGE.reads(run, None))
    monkeypatch.setattr(tokenizer.TokenizerStage, "version", tokenizer.STAGE.version + 1)
    assert tokenizer.STAGE.key(tokenizer.STAGE.reads(run, None)).digest() != before.digest()


def test_every_key_names_its_stage_and_the_version_of_its_algorithm() -> None:
    """Also those of stages that other stages need on their way, which stand in no list."""
    seen = []
    for path in (ROOT / "pipelines").glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "StageKey" and path.stem != "contract":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert (given.get("stage"), given.get("version")) == ("NAME", "VERSION"), path
                seen.append(path.stem)
    assert {"scores", "teachers"} <= set(seen)
