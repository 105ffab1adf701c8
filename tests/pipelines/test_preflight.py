"""What a later stage of a walk would refuse is refused before the first one builds: in one line, and with an empty store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.checkpoint.weights import save_model
from adapt.model.gpt import GPT
from adapt.text.tokenizer import Tokenizer
from pipelines.stages.run import Run
from pipelines.walk.ahead import Ahead
from pipelines.walk.preflight import CHECKS, check_keys
from pipelines.walk.preflight_files import check_file_names
from tests.support.command_line import SMALL_DEMO, SMALLEST, composed, refused
from tests.support.tiny_models import DEMO

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
SHORT = ["experiment=demo_from_scratch", f"data.root={SMALL_DEMO}"]
FROM_SCRATCH = SHORT  # tokenizer, pretrain and all that follows
FROM_BASE = [*SHORT, "stages=[pseudo_label,continue_pretrain,evaluate,export,predict]"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a copy of the demo's tasks that a test may break."""
    return Path(shutil.copytree(SMALL_DEMO, tmp_path / "clue"))


@pytest.fixture
def stays_empty(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> Callable[[list[str], list[str]], None]:
    """Return a function that runs a walk, and demands one line with these words and nothing built."""

    def go(arguments: list[str], words: list[str]) -> None:
        refused("run", [*arguments, f"run.dir={tmp_path}/runs"], words, monkeypatch, capsys)
        assert not list((tmp_path / "runs").rglob("*"))

    return go


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # criteria, prompts and readings
        (["evaluate.criteria=[sum,pmj]"], ["evaluate.criteria", "unknown criterion 'pmj'", "'pmi'"]),
        (["evaluate.criterion=summ"], ["evaluate.criterion", "unknown criterion 'summ'"]),
        (["pseudo_label.criterion=summ"], ["pseudo_label.criterion", "unknown criterion 'summ'"]),
        (["pseudo_label.prompts=[verdikt]"], ["pseudo_label.prompts", "no prompt 'verdikt'", "it has: "]),
        (["continue_pretrain.prompt=nope"], ["continue_pretrain.prompt", "no prompt 'nope'", "it has: "]),
        (["objective=channel"], ["prompt 'reference'", "objective.pseudo_label=channel", "label first"]),
        (
            ["continue_pretrain.prompt=label_first", "continue_pretrain.reads_unselected=true"],
            ["label first", "continue_pretrain.reads_unselected=false"],
        ),
        (["export.output=/proc/export"], ["export.output=/proc/export/demo_reviews: cannot be written (at /proc: "]),
        (["output=answers.jsonl"], ["output: answers.jsonl would hold the rows of the last of 2 tasks only", "/predict)"]),
        # tasks
        (["task=demo_revews"], ["unknown task 'demo_revews'", "'demo_reviews'"]),
        (["evaluate.other_tasks=[bustmm]"], ["unknown task 'bustmm'", "'bustm'"]),
        (["evaluate.other_tasks=[bustm]"], ["evaluate.other_tasks: bustm", "no labelled rows", "leave it out"]),
        (["continue_pretrain.joint={bustm: 1.0}"], ["continue_pretrain.joint", "'bustm' is not in tasks="]),
        (
            ["continue_pretrain.joint={demo_topics: 1.0}", "pseudo_label.rounds.count=2"],
            ["pseudo_label.rounds.count", "one round", "set it to 1"],
        ),
        # teachers
        (["pseudo_label.teachers=[model,rules]"], ["pseudo_label.teachers", "has no rules", "leave 'rules' out"]),
        (["pseudo_label.teachers=[file]"], ["pseudo_label.teacher_file: not set"]),
        (
            ["pseudo_label.teachers=[model,file]", "pseudo_label.teacher_file=/nowhere/labels.jsonl"],
            ["/nowhere/labels.jsonl: no such file", "pseudo_label.teacher_file"],
        ),
        (
            ["pseudo_label.teachers=[embedding]", "pseudo_label.encoder=/nowhere/encoder"],
            ["pseudo_label.encoder: /nowhere/encoder: no such directory"],
        ),
        # the engine, the optimizers and the model
        (["continue_pretrain.optimizer.algorithm=lamb"], ["continue_pretrain.optimizer.algorithm=lamb", "engine.zero_stage=0"]),
        (["pretrain.optimizer.algorithm=lamb"], ["pretrain.optimizer.algorithm=lamb", "engine.zero_stage=0"]),
        (["engine.memory_gb=0.0001"], ["engine.memory_gb"]),
        (["engine.world_size=3", "engine.expert_parallel=3"], ["expert_parallel"]),
        (["model.even_routing=true"], ["model.even_routing"]),
        (["model.vocab_size=2000"], ["model.vocab_size: is 2000", "tokenizer.vocab_size is 2600"]),
        (["model.experts=[0]", "continue_pretrain.trains=experts"], ["continue_pretrain.trains=experts", "has no parameters"]),
        (["model/router=hash", "continue_pretrain.trains=router"], ["continue_pretrain.trains=router", "has no parameters"]),
        (["continue_pretrain.moments=keep"], ["continue_pretrain.moments=keep", "pretrain.keeps_moments=true"]),
        # data
        (["data.root=null"], ["data.root is not set", "CLUE"]),
        (["data.root=/nowhere/at/all"], ["data.root: /nowhere/at/all is no directory"]),
        ([f"data.root={DEMO}"], ["demo_reviews/unlabeled.json: no such file", "data.root="]),
        (["evaluate.splits=[dve]"], ["none of the splits dve", "evaluate.splits"]),
        (["split=nosuch"], ["nosuch.json", "no such file"]),
        (["input=/nowhere/rows.csv"], ["/nowhere/rows.csv", "no such file"]),
        (["data.corpus=[/nowhere/*.txt]"], ["data.corpus", "/nowhere/*.txt"]),
        (["pretrain.repeats={genral: 2}"], ["pretrain.repeats", "no domain genral", "general"]),
        (["gate.max_general_ppl_increase=0.1", "data.corpus=[]"], ["data.corpus"]),
    ],
)  # fmt: skip
def test_a_walk_from_scratch_is_refused_before_the_tokenizer_is_trained(
    arguments: list[str], words: list[str], stays_empty: Callable[[list[str], list[str]], None]
) -> None:
    stays_empty([*FROM_SCRATCH, *arguments], words)


@pytest.mark.parametrize(
    ("task", "split", "line", "text", "words"),
    [
        ("demo_reviews", "unlabeled", 5, '{"id": 4, "sentence": "好"', ["unlabeled.json", "line 5", "not valid JSON"]),
        ("demo_topics", "unlabeled", 7, '{"id": 6, "text": "好"}', ["unlabeled.json", "line 7"]),
        ("demo_topics", "unlabeled", 1, None, ["demo_topics/unlabeled.json", "no such file"]),
        ("demo_topics", "dev", 2, '{"id": 1, "sentence": "好", "label": "weather"}', ["dev.json", "line 2", "label_words"]),
        ("demo_topics", "test", 3, '{"id": 0, "sentence": "好"}', ["test.json", "line 3", "id 0", "more than once"]),
    ],
)
def test_rows_that_a_later_stage_or_task_could_not_read_are_refused_first(
    task: str, split: str, line: int, text: str | None, words: list[str], data: Path,
    stays_empty: Callable[[list[str], list[str]], None],
) -> None:  # fmt: skip
    path = data / task / f"{split}.json"
    lines = path.read_text(encoding="utf-8").splitlines()
    if text is None:
        path.unlink()
    else:
        lines[line - 1] = text
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    stays_empty([*FROM_SCRATCH, f"data.root={data}"], words)


def test_labels_of_a_file_are_read_first(tmp_path: Path, stays_empty: Callable[[list[str], list[str]], None]) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"id": 0, "label": "Positive"}\n{"id": 1, "label": "Positiv"}\n', encoding="utf-8")
    arguments = ["task=demo_reviews", "pseudo_label.teachers=[model,file]", f"pseudo_label.teacher_file={file}"]
    stays_empty([*FROM_SCRATCH, *arguments], ["labels.jsonl", "line 2", "label 'Positiv' has no label word", "'Positive'"])


def test_candidates_of_the_rows_own_are_refused_to_the_embedding_teacher(
    tmp_path: Path, stays_empty: Callable[[list[str], list[str]], None]
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        "fields: {s: {path: sentence}}\ncandidates: options\nprompts:\n  reference: {template: '{s}{label}'}\n", encoding="utf-8"
    )
    arguments = ["task=mine", f"task_dir={tmp_path}/tasks", "pseudo_label.teachers=[model,embedding]"]
    stays_empty([*FROM_SCRATCH, *arguments], ["pseudo_label.teachers", "'embedding' has no labels to learn in task 'mine'"])


@pytest.mark.parametrize("text", [None, "\n"])
def test_the_lexical_labeller_alone_needs_unlabeled_rows(
    text: str | None, data: Path, stays_empty: Callable[[list[str], list[str]], None]
) -> None:
    path = data / "demo_topics" / "unlabeled.json"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    stages = "stages=[tokenizer,pretrain,evaluate,export]"
    arguments = [*FROM_SCRATCH, stages, f"data.root={data}", "evaluate.method=lexical"]
    stays_empty(arguments, ["evaluate.method=lexical: task 'demo_topics' has no unlabeled rows"])


def test_columns_that_would_be_written_over_are_refused_first(
    tmp_path: Path, stays_empty: Callable[[list[str], list[str]], None]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("sentence,prediction\n好,Positive\n", encoding="utf-8")
    stays_empty([*FROM_SCRATCH, f"input={rows}"], ["rows.csv", "has a column 'prediction'", "predict.prefix"])


def test_rows_to_be_labelled_at_the_end_are_read_first(tmp_path: Path, stays_empty: Callable[[list[str], list[str]], None]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"sentence": "好"}\n{"text": "好"}\n', encoding="utf-8")
    stays_empty([*FROM_SCRATCH, f"input={rows}"], ["rows.jsonl", "line 2", "'sentence'"])


@pytest.fixture
def dense_base(tmp_path: Path, dense_model: GPT, tokenizer: Tokenizer) -> Path:
    place = tmp_path / "base"
    place.mkdir()
    save_model(place, dense_model.config, dense_model.named_parameters(), tokenizer)
    return place


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["continue_pretrain.trains=experts"], ["continue_pretrain.trains=experts", "has no parameters"]),
        (["continue_pretrain.moments=keep"], ["continue_pretrain.moments=keep", "has no optimizer moments"]),
        (["stages=[continue_pretrain,evaluate]"], ["pseudo_label/demo_reviews: not there yet", "pipelines.pseudo_label"]),
        (["stages=[pseudo_label,export]"], ["evaluate/demo_reviews: not there yet", "pipelines.evaluate"]),
        (["stages=[evaluate,predict]"], ["is not an export", "pipelines.export"]),
    ],
)
def test_a_walk_from_a_base_is_refused_before_anything_is_labelled(
    arguments: list[str], words: list[str], dense_base: Path, stays_empty: Callable[[list[str], list[str]], None]
) -> None:
    stays_empty([*FROM_BASE, f"checkpoint={dense_base}", *arguments], words)


def test_words_of_the_last_task_that_the_base_cannot_tell_apart_are_refused_first(
    dense_base: Path, tmp_path: Path, stays_empty: Callable[[list[str], list[str]], None]
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        "folder: demo_reviews\nfields: {s: {path: sentence}}\nlabel_words: {Negative: 好 坏, Positive: 好▁坏}\n"
        "prompts:\n  reference: {template: '{s}{label}'}\n",
        encoding="utf-8",
    )
    arguments = ["tasks=[demo_topics,mine]", f"task_dir={tmp_path}/tasks", f"checkpoint={dense_base}"]
    stays_empty([*FROM_BASE, *arguments], ["task 'mine'", "have the same tokens"])


def test_a_base_that_is_not_whole_is_refused_first(dense_base: Path, stays_empty: Callable[[list[str], list[str]], None]) -> None:
    config = json.loads((dense_base / "config.json").read_text(encoding="utf-8"))
    (dense_base / "config.json").write_text(json.dumps({**config, "norm_eps": 1e-4}), encoding="utf-8")
    stays_empty([*FROM_BASE, f"checkpoint={dense_base}"], ["config.json: damaged"])


def test_every_concern_says_what_it_is_about() -> None:
    assert len({check.__name__ for check in CHECKS}) == len(CHECKS)
    assert all(check.__doc__ and "\n" not in check.__doc__ for check in CHECKS)


def test_an_export_by_another_method_than_the_evaluation_s_is_refused_and_by_the_same_one_made(
    copied_run: Path, run_here: Callable[[str, list[str]], str], monkeypatch: Patch, capsys: Capture
) -> None:
    line = [*SMALLEST, "task=demo_reviews", f"run.dir={copied_run}"]
    words = ["evaluate.method=raw: ", "'demo_reviews' decided by combined", "pipelines.evaluate` with evaluate.method=raw first"]
    refused("export", [*line, "evaluate.method=raw"], words, monkeypatch, capsys)
    assert "unchanged, skipped" in run_here("export", [*line, "evaluate.method=combined"])


def test_files_of_a_task_that_the_command_does_not_have_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dev = SMALL_DEMO / "demo_topics" / "dev.json"
    config = composed("evaluate", ["tasks=[demo_reviews]", f"data.files={{demo_topics: {{dev: {dev}}}}}", f"run.dir={tmp_path}"])

    def said(*given: str) -> str:
        caplog.clear()
        check_file_names(Ahead(run=Run(config), stages=["evaluate"], tasks=[], given=frozenset(given)))
        return caplog.text

    for key in ("data.files", "data.files.demo_topics.dev"):
        assert "data.files.demo_topics: is not read; the tasks of this command are demo_reviews" in said(key)
    assert said("data.files.demo_reviews.dev") == said() == "", "a file of settings may be shared"


def test_keys_that_no_stage_of_the_command_reads_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed("predict", [f"run.dir={tmp_path}"])

    def said(*given: str, stages: tuple[str, ...] = ("predict",)) -> str:
        caplog.clear()
        check_keys(Ahead(run=Run(config), stages=list(stages), tasks=[], given=frozenset(given)))
        return caplog.text

    assert "evaluate.method, model.router: not read by predict; " in said("evaluate.method", "model/router", "input")
    assert "evaluate.method: not read by pseudo_label, predict; " in said("evaluate.method", stages=("pseudo_label", "predict"))
    assert said("evaluate", "evaluate.criteria", stages=("pseudo_label",)) == "", "a section of which a part is read"
    assert said("engine.threads", "run.name", "stages", "experiment", "hydra/launcher", "sweep.objective", "baseline") == ""
