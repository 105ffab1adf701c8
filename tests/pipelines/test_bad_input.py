"""Bad input: one clear line, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import pseudo_label
from adapt.core.errors import DataError
from pipelines.config.locations import demo_dir
from tests.support.command_line import SMALL_DEMO, SMALLEST, on_base, refused


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a copy of the demo data that a test may break."""
    shutil.copytree(demo_dir(), tmp_path / "demo")
    return tmp_path / "demo"


@pytest.mark.parametrize(
    ("stage", "arguments", "words"),
    [
        ("run", ["tokeniser.vocab_size=3"], ["unknown key 'tokeniser", "did you mean 'tokenizer'"]),
        ("run", ["pretrain.stepz=3"], ["unknown key 'pretrain.stepz'", "'steps'"]),
        ("run", ["pretrain.steps=many"], ["pretrain.steps", "int", "many"]),
        ("run", ["experiment=nope"], ["experiment/nope", "zeroclue_cpu"]),
        ("run", ["pretrain.steps=0", "pretrain.batch_rows=0"], ["steps: 0", "batch_rows: 0"]),
        ("run", ["continue_pretrain.epochs=0"], ["continue_pretrain", "epochs: 0"]),
        ("run", ["continue_pretrain.save_every_steps=0"], ["continue_pretrain", "save_every_steps: 0"]),
        ("run", ["continue_pretrain.optimizer.lr=-1"], ["continue_pretrain.optimizer", "lr: -1"]),
        ("run", ["objective.weights.pseudo_label=-1"], ["objective.weights", "pseudo_label: -1"]),
        ("run", ["pretrain.optimizer.warmup_share=2"], ["pretrain.optimizer", "warmup_share: 2"]),
        ("run", ["pseudo_label.rounds.count=0"], ["pseudo_label.rounds", "count: 0"]),
        ("run", ["pseudo_label.held_out_share=2"], ["pseudo_label", "held_out_share: 2"]),
        ("run", ["pseudo_label.prompts=[]"], ["pseudo_label", "empty list"]),
        ("run", ["pseudo_label.selection.share=2"], ["pseudo_label.selection.share: 2"]),
        ("run", ["pretrain.steps=many", "seed=x"], ["pretrain.steps", "seed"]),
        ("run", ["engine.precision=fp8"], ["engine.precision", "fp8", "bf16"]),
        ("run", ["engine.loss_scale.initial=1000"], ["engine.loss_scale.initial: 1000 is not a power of 2"]),
        ("run", ["engine.precision=fp16", "engine.zero_stage=0"], ["engine", "zero_stage: 0", "fp16"]),
        ("run", ["engine.hostfile=/nowhere/hosts"], ["engine.hostfile", "/nowhere/hosts", "host slots=n"]),
        ("run", ["engine.zero_stage=3"], ["engine", "zero_stage", "3"]),
        ("run", ["model=smal"], ["model/smal", "small"]),
        ("run", ["model/router=top9"], ["model/router/top9", "top1"]),
        ("run", ["=3"], ["override"]),
        ("run", ["task=eprstmd"], ["unknown task 'eprstmd'", "'eprstmt'"]),
        ("run", ["stages=[pretrian]"], ["unknown stage 'pretrian'", "'pretrain'"]),
        ("tokenizer", ["data.corpus=[nowhere/*.txt]"], ["nowhere/*.txt"]),
        ("tokenizer", ["tokenizer.vocab_size=900000"], ["vocab_size"]),
        ("pretrain", [], ["tokenizer", "not there yet", "pipelines.tokenizer"]),
        ("evaluate", ["checkpoint=/nowhere/at/all"], ["/nowhere/at/all"]),
        ("predict", ["checkpoint=/nowhere/at/all", "input=x"], ["/nowhere/at/all"]),
        ("run", ["exclude_eval=test"], ["exclude_eval", "'test'", "none, dev, all"]),
        ("run", ["pseudo_label.max_rows=-1"], ["pseudo_label", "max_rows: -1", "null"]),
        ("run", ["evaluate.fit_rows=-1"], ["evaluate", "fit_rows: -1"]),
        ("run", ["pseudo_label.coarse.beam=0"], ["pseudo_label.coarse", "beam: 0", "at least one group"]),
        ("plan", ["model.experts=[4,4,4]"], ["model.experts", "3 entries"]),
        ("run", ["model.capacity_factor=-1"], ["model.capacity_factor", "-1"]),
        ("run", ["model/router=sigmoid_bias", "model.router.experts_per_token=99"], ["experts_per_token", "99"]),
        ("plan", ["model.n_heads=7"], ["hidden_size", "7"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    stage: str,
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = ["experiment=demo_from_scratch", f"data.root={SMALL_DEMO}"]
    refused(stage, [*short, f"run.dir={tmp_path}/runs", *arguments], words, monkeypatch, capsys)
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_a_malformed_corpus_line_is_named(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = data / "bad.jsonl"
    corpus.write_text('{"text": "好"}\n{"text": \n', encoding="utf-8")
    arguments = ["experiment=demo_from_scratch", f"data.corpus=[{corpus}]", f"run.dir={data}/runs"]
    refused("tokenizer", arguments, ["bad.jsonl", "line 2", "not valid JSON"], monkeypatch, capsys)
    assert not list(data.glob("runs/**/manifest.json"))


def break_task(data: Path, split: str, line: int, text: str | None) -> None:
    path = data / "clue" / "demo_reviews" / f"{split}.json"
    lines = path.read_text(encoding="utf-8").splitlines()
    if text is None:
        path.unlink()
    else:
        lines[line - 1] = text
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("stage", "split", "line", "text", "words"),
    [
        ("pseudo_label", "unlabeled", 5, '{"id": 4, "sentence": "好"', ["unlabeled.json", "line 5", "not valid JSON"]),
        ("pseudo_label", "unlabeled", 7, '{"id": 6, "text": "好"}', ["unlabeled.json", "line 7", "sentence"]),
        ("pseudo_label", "unlabeled", 1, None, ["unlabeled.json", "no such file"]),
        (
            "evaluate",
            "dev",
            2,
            '{"id": 1, "sentence": "好", "label": "Neutral"}',
            ["dev.json", "line 2", "'Neutral'", "label_words"],
        ),
        ("evaluate", "test", 3, '{"id": 0, "sentence": "好"}', ["test.json", "line 3", "id 0", "more than once"]),
    ],
)
def test_a_broken_task_file_is_named_by_file_and_line(
    stage: str, split: str, line: int, text: str | None, words: list[str], smallest_run: Path, data: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    break_task(data, split, line, text)
    arguments = [
        *SMALLEST, "tasks=[demo_reviews]", f"data.root={data}/clue", f"checkpoint={smallest_run}/pretrain",
        f"run.dir={data}/runs",
    ]  # fmt: skip
    refused(stage, arguments, words, monkeypatch, capsys)
    assert not list(data.glob("runs/**/manifest.json"))


def test_a_task_with_a_label_without_words_is_named(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], smallest_run: Path
) -> None:
    own = data / "tasks"
    own.mkdir()
    (own / "mine.yaml").write_text(
        "folder: demo_reviews\nfields: {s: {path: sentence}}\nlabel_words: {Positive: 好, Negative: 差}\n"
        "prompts:\n  reference: {template: '{s}{label}', label_words: {Positive: 好}}\n",
        encoding="utf-8",
    )
    arguments = [
        "experiment=demo_from_scratch",
        "tasks=[mine]",
        f"task_dir={own}",
        f"checkpoint={smallest_run}/pretrain",
        f"run.dir={data}/r",
    ]
    words = ["mine.yaml", "label 'Negative' has no label word"]
    refused("pseudo_label", arguments, words, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("stage", "argument", "words"),
    [
        ("pseudo_label", "pseudo_label.prompts=[verdikt]", ["pseudo_label.prompts", "'demo_reviews'", "'verdikt'", "'verdict'"]),
        ("evaluate", "pseudo_label.prompts=[verdikt]", ["pseudo_label.prompts", "'demo_reviews'", "'verdikt'", "'verdict'"]),
        ("pseudo_label", "pseudo_label.criterion=summ", ["unknown criterion 'summ'", "'sum'"]),
        ("evaluate", "evaluate.criteria=[sum,pmj]", ["unknown criterion 'pmj'", "'pmi'"]),
        ("evaluate", "split=nosuch", ["nosuch.json", "no such file"]),
    ],
)
def test_a_name_that_does_not_exist_is_refused_before_anything_is_scored(
    stage: str, argument: str, words: list[str], smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], scorings: list[str],
) -> None:  # fmt: skip
    refused(stage, [*on_base(smallest_run, tmp_path, "demo_reviews"), argument], words, monkeypatch, capsys)
    assert scorings == []
    assert not list(tmp_path.glob("**/manifest.json"))


def test_a_tokenizer_of_another_size_is_refused(
    smallest_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALLEST, f"run.dir={smallest_run.parent}", "model.vocab_size=2000"]
    refused("pretrain", arguments, ["2400", "2000", "model.vocab_size"], monkeypatch, capsys)


def test_a_checkpoint_with_another_tokenizer_is_refused(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from adapt.text.tokenizer import TokenizerConfig, train_tokenizer

    place = tmp_path / "export"
    shutil.copytree((smallest_run / "export" / "demo_reviews").resolve(), place)
    lines = (demo_dir() / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()
    train_tokenizer(lines, TokenizerConfig(vocab_size=2300), "other").save(place)
    source = tmp_path / "rows.jsonl"
    source.write_text('{"sentence": "好"}\n', encoding="utf-8")
    arguments = [f"checkpoint={place}", f"input={source}", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, ["tokenizer.model"], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,text\n1,好\n", ["rows.csv, line 2", "sentence", "id, text"]),
        ("id,sentence\n1,好\n2\n", ["rows.csv, line 3", "columns"]),
        ("", ["rows.csv", "no rows"]),
    ],
)
def test_rows_that_cannot_be_predicted_are_named(
    content: str, words: list[str], smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = tmp_path / "rows.csv"
    source.write_text(content, encoding="utf-8")
    output = tmp_path / "labels.jsonl"
    arguments = [
        f"checkpoint={smallest_run}/export/demo_reviews", f"input={source}", f"output={output}", f"run.dir={tmp_path}/runs",
    ]  # fmt: skip
    refused("predict", arguments, words, monkeypatch, capsys)
    assert not output.exists()


def test_python_rows_that_are_no_mappings_are_refused(smallest_run: Path) -> None:
    with pytest.raises(DataError, match="expected a mapping with sentence"):
        pseudo_label.load(smallest_run / "export" / "demo_reviews").predict(["好"])  # type: ignore[list-item]


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    arguments = ["experiment=demo_from_scratch", f"run.dir={tmp_path}/file/runs"]
    refused("tokenizer", arguments, [f"{tmp_path}/file/runs", "cannot be written"], monkeypatch, capsys)


def test_predictions_are_never_written_over_the_input(
    tmp_path: Path, smallest_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("sentence\n很好\n", encoding="utf-8")
    export = smallest_run / "export" / "demo_reviews"
    arguments = [f"checkpoint={export}", f"input={rows}", f"output={rows}", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, ["rows.csv", "is the input", "output="], monkeypatch, capsys)
    assert rows.read_text(encoding="utf-8") == "sentence\n很好\n"
