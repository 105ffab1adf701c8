"""`python -m pipelines.tokenizer_doctor tokenizer=PLACE task=NAME task_dir=DIR data.root=DIR [data.corpus=[...]] [key=value ...]`

Look at a tokenizer through a task's rows and label words and through general text, before anything is labelled with it.

  tokenizer    a checkpoint, an export, a Hugging Face directory, a .model file of SentencePiece or a tokenizer.json (the shipped
               base's)
  task, tasks  NAME, or [NAME, ...]: tasks whose label words are looked at, and their rows where data.root is given
  task_dir     a directory with task files of your own
  data.root    the tasks' rows, <task>/{unlabeled,dev,few,test}.{json,csv,...}
  data.corpus  files of text, or patterns; data.domain_field, data.encoding, data.quotes as everywhere
  rows         rows or documents looked at in each split and each domain, drawn from all of them (20000)
  output       a .json file for all of it

It prints characters a token by task and domain; the shares of tokens that are parts of a character (bytes) or unknown; texts
that do not decode to themselves; then label words that split, collide, begin like another, merge with the text before them, or
lack the space before them; special tokens that text can spell; and pieces that occur in no text. Each finding says what to change:
a fault would end a walk, a warning costs accuracy or time, a note is good to know. Exit code 0, with findings too; 2 after one
line for a mistake.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapt.checkpoint.hf_directory import CONFIG_FILE
from adapt.checkpoint.vocabulary import open_tokenizer, tokenizer_of
from adapt.core.artifacts import write_atomically
from adapt.core.errors import ConfigError
from adapt.core.faults import refuse_closed, writable
from adapt.core.json_files import json_text
from adapt.core.runtime import generator_for
from adapt.text.contract import TextTokenizer
from adapt.text.corpus import find_corpus, read_documents
from adapt.text.rows.directories import is_rows
from adapt.text.tokenizer_health import (
    Finding,
    Level,
    TextHealth,
    findings_on,
    health_of,
    reachable_specials,
    unused_pieces,
    vocabulary_findings,
)
from pipelines.config.locations import conf_dir, demo_dir
from pipelines.config.schema import DataConfig
from pipelines.stages.run import read_as, splits_of_tasks
from pseudo_label.label_word_checks import asked_words, check_label_words
from pseudo_label.splits import Splits
from pseudo_label.tasks import TaskConfig, TaskRow, iterate_split, load_task, split_path

_SPLITS = ("unlabeled", "dev", "few", "test")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Which tokenizer, and the tasks and texts that it is looked at through."""

    tokenizer: str | None = None
    task: str | None = None
    tasks: list[str] = field(default_factory=list)
    task_dir: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    rows: int = 20_000
    output: str | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"rows: {self.rows} is less than 1")
        if self.output is not None and not self.output.endswith(".json"):
            raise ConfigError(f"output={self.output}: is written as JSON; let the name end in .json")
        if not self.names and not self.data.corpus:
            raise ConfigError("nothing to look at; give task=NAME (with data.root=DIR for its rows) or data.corpus=[FILE, ...]")
        if self.task_dir is not None and not Path(self.task_dir).is_dir():
            raise ConfigError(f"task_dir: {self.task_dir} is no directory; give a directory of task files, NAME.yaml")
        if self.data.root is not None and not Path(self.data.root).is_dir():
            raise ConfigError(f"data.root: {self.data.root} is no directory; give one with <task>/unlabeled.csv and the like")

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*([self.task] if self.task is not None else []), *self.tasks]))


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found."""

    tokenizer: TextTokenizer
    healths: list[TextHealth]
    findings: list[Finding]
    words: dict[str, dict[str, dict[str, list[str]]]]


def main(config: DoctorConfig) -> int:
    """Look, print, and write the file; return the exit code.

    Raises:
        AdaptError: a tokenizer, task, or file of rows cannot be read, or the output cannot be written.
    """
    if config.output is not None:
        refuse_closed(Path(config.output).absolute().parent)
    found = diagnose(config)
    sys.stdout.write(told(found))
    if config.output is not None:
        place = Path(config.output).absolute()
        with writable(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, json_text(as_plain(found)))
    return 0


def diagnose(config: DoctorConfig) -> Diagnosis:
    """Look at the tokenizer. Raises AdaptError as `main` does."""
    tokenizer = tokenizer_at(demo_dir() / "base" if config.tokenizer is None else Path(config.tokenizer))
    own = [Path(config.task_dir)] if config.task_dir is not None else []
    task_dirs = [*own, conf_dir() / "task"]
    tasks = [read_as(config.data, load_task(name, task_dirs)) for name in config.names]
    has_rows = config.data.root is not None or config.data.files
    splits = splits_of_tasks(config.data, config.names, task_dirs) if has_rows else None
    healths: list[TextHealth] = []
    findings: list[Finding] = []
    words: dict[str, dict[str, dict[str, list[str]]]] = {}
    for task in tasks:
        rows = [] if splits is None else _rows_of(splits, task, config.rows)
        if rows:
            healths.append(health_of(tokenizer, f"task {task.name}", texts_of(rows, task)))
        found = check_label_words(task, tokenizer, rows)
        findings += found
        if task.candidates is None and not any(finding.level is Level.FAULT for finding in found):
            words[task.name] = _pieces_of(task, tokenizer, rows)
    for domain, texts in _documents(config).items():
        healths.append(health_of(tokenizer, f"corpus {domain}", texts))
    findings = [finding for health in healths for finding in findings_on(health)] + findings
    findings += vocabulary_findings(tokenizer, healths)
    order = list(Level)
    return Diagnosis(
        tokenizer=tokenizer, healths=healths, findings=sorted(findings, key=lambda x: order.index(x.level)), words=words
    )


def tokenizer_at(place: Path) -> TextTokenizer:
    """Open a tokenizer by its file, or by the directory of a checkpoint; a checkpoint's is compared with its model's vocabulary.

    Raises:
        CheckpointError: there is none, it is damaged, or does not fit the model beside it.
    """
    if place.is_dir() and (place / CONFIG_FILE).is_file():
        return tokenizer_of(place)
    return open_tokenizer(place)


def texts_of(rows: Iterable[TaskRow], task: TaskConfig) -> Iterator[str]:
    """Yield the texts of rows, field by field, without the marks of blanks; empty ones are left out."""
    for row in rows:
        for name, text in row.texts.items():
            blank = task.fields[name].blank
            plain = text if blank is None else text.replace(blank, "")
            if plain:
                yield plain


def told(found: Diagnosis) -> str:
    """Return what is printed."""
    tokenizer = found.tokenizer
    lines = [f"tokenizer {tokenizer.source}: {tokenizer.vocab_size:,} pieces"]
    if found.healths:
        width = max(len("text"), *(len(health.name) for health in found.healths))
        lines += ["", f"{'text':<{width}}    texts   characters  a token  parts of one   unknown     lost"]
        lines += [
            f"{health.name:<{width}}  {health.texts:>7,}  {health.characters:>11,}  {health.characters_a_token:>7.2f}  "
            f"{100 * health.part_share:>10.2f} %  {100 * health.unknown_share:>6.2f} %  {health.n_lost:>7,}"
            for health in found.healths
        ]
        lines += ["", f"pieces that occur in none of these texts: {unused_pieces(tokenizer, found.healths):,}"]
    counts = {level: sum(finding.level is level for finding in found.findings) for level in Level}
    said = [f"{count} {level.value}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    lines += ["", f"verdict: {', '.join(said) or 'nothing to change'}"]
    lines += [f"  {finding.level.value}: {finding}" for finding in found.findings]
    return "\n".join(lines) + "\n"


def as_plain(found: Diagnosis) -> dict[str, Any]:
    """Return all that was found as values of JSON."""
    tokenizer = found.tokenizer
    return {
        "tokenizer": tokenizer.source,
        "digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "unused_pieces": unused_pieces(tokenizer, found.healths),
        "reachable_special_tokens": reachable_specials(tokenizer),
        "texts": [
            {
                "name": health.name,
                "texts": health.texts,
                "characters": health.characters,
                "tokens": health.tokens,
                "characters_a_token": round(health.characters_a_token, 4),
                "part_share": round(health.part_share, 6),
                "unknown_share": round(health.unknown_share, 6),
                "spelt_characters": health.spelt,
                "lost_texts": health.lost_texts,
                "examples": health.examples,
            }
            for health in found.healths
        ],
        "label_words": found.words,
        "findings": found.findings,
    }


def _pieces_of(task: TaskConfig, tokenizer: TextTokenizer, rows: list[TaskRow]) -> dict[str, dict[str, list[str]]]:
    return {
        name: {word.word: tokenizer.pieces(word.ids) for word in asked_words(task, name, tokenizer, rows)} for name in task.prompts
    }


def _rows_of(splits: Splits, task: TaskConfig, most: int) -> list[TaskRow]:
    """Return a sample of each split that a task has, the unlabeled one first."""
    found = []
    for split in _SPLITS:
        if is_rows(split_path(splits, task, split)):
            found += _sample(iterate_split(splits, task, split), most, f"{task.name} {split}")
    if not found:
        raise ConfigError(f"{split_path(splits, task, 'unlabeled').parent}: has no rows of task '{task.name}'; check data.root")
    return found


def _documents(config: DoctorConfig) -> dict[str, list[str]]:
    """Return a sample of each domain's documents."""
    if not config.data.corpus:
        return {}
    kept: dict[str, _Reservoir] = {}
    for file in find_corpus(config.data.corpus, config.data.domain_field, config.data.encoding, config.data.quotes):
        for document in read_documents(file):
            kept.setdefault(document.domain, _Reservoir(config.rows, document.domain)).add(document.text)
    return {domain: kept[domain].items for domain in sorted(kept)}


def _sample(rows: Iterable[TaskRow], most: int, name: str) -> list[TaskRow]:
    kept = _Reservoir(most, name)
    for row in rows:
        kept.add(row)
    return kept.items


class _Reservoir:
    """Keeps at most `size` items of a stream, each with the same chance, the same ones every time."""

    def __init__(self, size: int, name: str) -> None:
        self.items: list[Any] = []
        self._size, self._seen, self._random = size, 0, generator_for("tokenizer doctor", name)

    def add(self, item: Any) -> None:
        self._seen += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := int(self._random.integers(self._seen))) < self._size:
            self.items[place] = item
