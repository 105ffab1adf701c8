"""`python -m pipelines.init data=FILE [key=value ...]`: a table to a task's file and its rows, and the commands that go on.

It looks at the file, asks on a terminal which column is the text and what the classes are called, and writes

  <root>/<task>/unlabeled.jsonl   rows to adapt on, without labels
  <root>/<task>/dev.jsonl         labelled rows to measure on, where there are any; their texts are kept out of unlabeled
  <root>/<task>/test.jsonl        where no row has a label: some rows to look at the predictions of
  <task_dir>/<task>.yaml          the task with three prompts, in Chinese or English

Rows keep the ids of the file (columns id or idx) if all rows have one and none repeats; else they are numbered, which is said. Then
it prints the command that adapts, and the one that labels new rows. Nothing is overwritten. Without a terminal `text`, `label`
and `labels` have to be given.

  data         a file of rows: .csv, .tsv, .jsonl, .json, .parquet or .xlsx, text files also with .gz
  text         the column of the text; 'text=[A, B]' for pairs of texts
  label        the column of the labels, or none: then no column is read as labels
  labels       the classes: 'labels={0: 差评, 1: 好评}' gives each label of the column its word. More words for a label help much:
               'labels={0: [差评, 失望, 太差], 1: [好评, 喜欢, 推荐]}'. Without a column of labels 'labels=[差评, 好评]' will do
  alike        for pairs: the label of texts that mean the same, or follow; their common characters or words then label too
  task         the task's name (that of the file)
  root         directory of the tasks' rows (mydata); data.root= of other commands
  task_dir     directory of task files (mytasks)
  checkpoint   the base that label words are checked against and that the printed command adapts (the shipped one)
  language     of the prompts: auto (by the script of the texts), zh or en
  dev_rows     at most so many labelled rows are kept to measure on (500, and at most a third of all rows)
  seed         which rows these are (0)
  encoding     of the file (recognised)
  quotes       of a table: cells, or text where they are letters like others

Exit code 0, or 2 after one line for a mistake; then nothing was written.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.core.errors import ConfigError, DataError, counted
from adapt.text.rows.contract import Quotes, RowsFile
from adapt.text.rows.reading import endings_of, open_rows, rows_of
from adapt.text.tokenizer_health import Finding, Level, findings_on, health_of, is_spaced
from pipelines.config.label_settings import PseudoLabelConfig
from pipelines.config.locations import demo_dir
from pipelines.stages.models import open_model_artifact, weights_of
from pipelines.tools.init_answers import Answers, Terminal, answers_for
from pipelines.tools.init_files import Written, has_text, refuse_taken, write_task
from pseudo_label.columns import Survey, is_no_label, survey
from pseudo_label.label_word_checks import check_label_words
from pseudo_label.new_task import Language, NewTask, task_text
from pseudo_label.splits import refuse_no_name
from pseudo_label.tasks import TaskConfig, TaskRow, load_task, row_from

_LOOKED_AT_ROWS = 2000
_FEW_ROWS = 4000  # below, batches are small and epochs many, so that there are enough steps
_BATCH_ROWS, _ENOUGH_STEPS, _MOST_EPOCHS, _USUAL_EPOCHS = 8, 40, 20, 2
_LEAST_ROWS = 200  # of texts to adapt on; below, more are advised
_STAGES = "stages=[pseudo_label,continue_pretrain,evaluate,export,report]"


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """The file, what is in it, and where the task goes."""

    data: str
    text: str | None = None
    label: str | None = None
    labels: str | None = None
    alike: str | None = None
    task: str | None = None
    root: str = "mydata"
    task_dir: str = "mytasks"
    checkpoint: str | None = None
    language: Language = Language.AUTO
    dev_rows: int | None = None
    seed: int = 0
    encoding: str | None = None
    quotes: Quotes | None = None

    def __post_init__(self) -> None:
        if self.dev_rows is not None and self.dev_rows < 1:
            raise ConfigError(f"dev_rows: {self.dev_rows} is less than 1")
        refuse_no_name("task", self.name)
        if re.fullmatch(r"[\w-]+", self.name) is None:
            raise ConfigError(f"task: {self.name!r} has signs other than letters, digits, _ and -; give another name")

    @property
    def name(self) -> str:
        if self.task is not None:
            return self.task
        name = Path(self.data).name
        return re.sub(r"[^\w-]+", "_", name[: len(name) - len(endings_of(name))]).strip("_") or "task"

    @property
    def base(self) -> Path:
        return demo_dir() / "base" if self.checkpoint is None else Path(self.checkpoint)


def main(config: InitConfig, terminal: Terminal | None = None) -> int:
    """Write the task and print the commands; return the exit code.

    Raises:
        ConfigError: something is there already, an answer is missing or wrong, or two labels look the same to the base.
        DataError: the file cannot be read, or has no rows with text.
    """
    terminal = terminal or Terminal()
    refuse_taken(config.root, config.task_dir, config.name)
    weights = weights_of(open_model_artifact(config.base))
    tokenizer = tokenizer_of(weights)
    file = open_rows(Path(config.data), encoding=config.encoding, quotes=config.quotes)
    found = survey(row.record for row in rows_of(file))
    if not found.rows:
        raise DataError(f"{file.name}: has no rows")
    answers = answers_for(file.name, found, config.text, config.label, config.labels, config.alike, terminal)
    new = _new_task(config, found, answers)
    text = task_text(new)
    task = _loaded(config.name, text)
    rows = _first_rows(file, task, _LOOKED_AT_ROWS)
    findings = check_label_words(task, tokenizer, rows)
    faults = [finding for finding in findings if finding.level is Level.FAULT]
    if faults:
        raise ConfigError(f"labels: {faults[0]}")
    findings += findings_on(health_of(tokenizer, "texts", (x for row in rows for x in row.texts.values()), with_losses=False))
    written = write_task(
        file, task, text, root=config.root, task_dir=config.task_dir, dev_rows=config.dev_rows, seed=config.seed,
        has_labels=answers.label is not None,
    )  # fmt: skip
    sys.stdout.write(_told(config, new, found, findings, written, is_hugging_face=is_hf_directory(weights)))
    return 0


def _new_task(config: InitConfig, found: Survey, answers: Answers) -> NewTask:
    language = config.language
    if language is Language.AUTO:
        letters = sum((found.columns[name].letters for name in answers.texts), Counter[str]())
        language = Language.EN if is_spaced(letters) else Language.ZH
    return NewTask(
        name=config.name,
        source=Path(config.data).name,
        texts=answers.texts,
        label=answers.label,
        labels=answers.labels,
        language=language,
        alike=answers.alike,
        are_sentences=all(found.columns[name].are_sentences for name in answers.texts),
    )


def _loaded(name: str, text: str) -> TaskConfig:
    """Read a task's file as a run will, before it has its place."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / f"{name}.yaml").write_text(text, encoding="utf-8")
        try:
            return load_task(name, [Path(place)])
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{place}/")) from error


def _first_rows(file: RowsFile, task: TaskConfig, most: int) -> list[TaskRow]:
    rows = (row for row in rows_of(file) if has_text(row.record, task))
    found = [row_from(row.record, task, file.name, row.number, row.unit, reads_label=False) for row in islice(rows, most)]
    if not found:
        raise DataError(f"{file.name}: no row has text in {', '.join(spec.path for spec in task.fields.values())}")
    return found


def _told(
    config: InitConfig, new: NewTask, found: Survey, findings: Sequence[Finding], written: Written, *, is_hugging_face: bool
) -> str:
    language = "Chinese" if new.language is Language.ZH else "English"
    lines = [f"{written.folder}: {written.said}"]
    lines.append(f"{written.task_file}: {len(new.labels)} labels, three prompts in {language}")
    lines += _said_of_unlabelled(new, found)
    lines += [f"{finding.level.value}: {finding}" for finding in findings]
    if not any(label.synonyms for label in new.labels) and new.alike is None:
        lines.append(
            f"advice: labels have no synonyms yet; five to ten a label, in {written.task_file}, bring most of the accuracy"
        )
    if len(new.texts) == 2 and new.alike is None:
        lines.append("advice: alike=LABEL, the label of texts that mean the same, lets common characters or words label too")
    if written.unlabeled < _LEAST_ROWS:
        lines.append(f"advice: {counted(written.unlabeled, 'row')} to adapt on is too little; add more texts, which need no labels")
    lines += ["", "adapt the base to it:", f"  {run_command(config, written, is_hugging_face=is_hugging_face)}"]
    lines += ["then label rows:", f"  {predict_command(config)}"]
    return "\n".join(lines) + "\n"


def _said_of_unlabelled(new: NewTask, found: Survey) -> list[str]:
    """Say which values of the labels' column count as no label."""
    values = None if new.label is None else found.columns[new.label].values
    names = {label.name for label in new.labels}
    return [
        f"note: {count:,} rows have '{value}' in '{new.label}', which counts as no label unless labels= gives it a word"
        for value, count in (values or {}).items()
        if is_no_label(value) and value not in names
    ]


def run_command(config: InitConfig, written: Written, *, is_hugging_face: bool) -> str:
    """Return the command that labels, adapts, evaluates and exports."""
    base = _from_here(config.base)
    words = [f"run.name={config.name}", f"task={config.name}", f"task_dir={config.task_dir}", f"data.root={config.root}"]
    words += ["model=hf", f"model.path={base}"] if is_hugging_face else [f"checkpoint={base}"]
    words.append(_STAGES)
    return shlex.join(["python", "-m", "pipelines.run", *words, *_enough_steps(written.unlabeled)])


def _enough_steps(n_rows: int) -> list[str]:
    """Return the settings by which so many rows are trained in enough steps; none where the usual ones do."""
    if n_rows >= _FEW_ROWS:
        return []
    settings = PseudoLabelConfig()
    selected = n_rows * (1 - settings.held_out_share) * settings.selection.share
    epochs = min(math.ceil(_ENOUGH_STEPS * _BATCH_ROWS / selected), _MOST_EPOCHS)
    words = [f"continue_pretrain.batch_rows={_BATCH_ROWS}"]
    return [*words, f"continue_pretrain.epochs={epochs}"] if epochs > _USUAL_EPOCHS else words


def predict_command(config: InitConfig) -> str:
    """Return the command that labels the rows of the file with the adapted model."""
    ending = endings_of(Path(config.data).name)
    plain = ending.removesuffix(".gz")
    ending = ending if plain in (".csv", ".tsv") else ".jsonl" if plain in (".json", ".jsonl", ".ndjson") else ".csv"
    words = [
        f"checkpoint=runs/{config.name}/export/{config.name}",
        f"input={config.data}",
        f"output={config.name}_labelled{ending}",
    ]
    words += [f"data.encoding={config.encoding}"] if config.encoding is not None else []
    words += [f"data.quotes={config.quotes.value}"] if config.quotes is not None else []
    return shlex.join(["python", "-m", "pipelines.predict", *words])


def _from_here(place: Path) -> str:
    """Return a path as short as it can be said from the current directory."""
    try:
        return str(place.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(place)
