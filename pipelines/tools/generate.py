"""`python -m pipelines.generate checkpoint=DIR prompt=TEXT | input=FILE [output=FILE]`: texts that go on where prompts end.

One prompt's text goes to the terminal as it grows. A file's prompts are all checked before the first goes on; they are continued in
parts, which a killed command finds again, and leave with their rows as JSON lines, csv or tsv, in their order.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.core.artifacts import Artifact, write_atomically
from adapt.core.errors import ConfigError, DataError, shown
from adapt.core.faults import writable
from adapt.core.precision import say_precision
from adapt.core.progress import progress
from adapt.core.registry import suggest
from adapt.core.typed import digest_of, to_plain
from adapt.model.config import HFConfig
from adapt.text.corpus import is_plain, read_lines
from adapt.text.rows.reading import open_rows, rows_of
from adapt.text.rows.writing import STANDARD, check_writable, without_nan, write_rows
from pipelines.config.schema import PipelineConfig
from pipelines.stages.models import weights_of
from pipelines.stages.run import Run

if TYPE_CHECKING:
    from adapt.checkpoint.open_checkpoint import OpenCheckpoint
    from adapt.model.generating import Generated, TextRules

logger = logging.getLogger("pipelines")
ADDED = ("generated", "generated_tokens", "generated_ending")
_PART_ROWS = 256
_VERSION = 1  # of the algorithm: parts of another one are not gone on with


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to continue, the row that it came with, and what messages call it."""

    text: str
    record: Mapping[str, Any]
    place: str


def show(config: PipelineConfig, point: str | None) -> None:
    """Continue the prompts, and write what they became.

    Raises:
        ConfigError: no prompt is given, or two ways of giving some, or the output cannot be written.
        DataError: a prompt is empty, missing, or fills the context.
        CheckpointError: there is no model, or it has no tokenizer.
    """
    output = STANDARD if config.output is None else config.output
    check_writable(output)
    prompts = prompts_of(config)
    run = Run(config, point)
    base = run.base()
    opened = _opened(config, base)
    from adapt.model.generating import TextRules  # imports torch

    rules = TextRules.of(opened.model, opened.tokenizer, config.generate.stop)
    tokens = [rules.encode(prompt.text) for prompt in prompts]
    for prompt, ids in zip(prompts, tokens, strict=True):
        if len(ids) >= opened.model.context_length:
            raise DataError(
                f"{prompt.place}: has {len(ids):,} tokens with its start, and the model reads {opened.model.context_length:,}, "
                "the text that is added included; shorten it"
            )
    if config.generate.prompt is not None and config.output is None:
        _stream(config, opened, rules, tokens[0])
        return
    _write(config, opened, rules, prompts, tokens, base, output)


def prompts_of(config: PipelineConfig) -> list[Prompt]:
    """Return the prompts of `generate.prompt` or of `input`: a row each, or a line each of a .txt file.

    Raises:
        ConfigError: none is given, or both are.
        DataError: one is empty or missing, or there is none in the file.
    """
    given, name = config.generate.prompt, config.input
    if (given is None) == (name is None):
        said = "are both set; give one of them" if given is not None else "are not set; give prompt=TEXT or input=FILE"
        raise ConfigError(f"prompt and input: {said}")
    if given is not None:
        found = [Prompt(text=given, record={config.generate.field: given}, place="prompt")]
    else:
        found = list(_read(config, Path(str(name))))
        if not found:
            raise DataError(f"{name}: holds no prompt")
    for prompt in found:
        if not prompt.text.strip():
            raise DataError(f"{prompt.place}: the prompt is empty; give it a text, or take it out")
    return found


def _read(config: PipelineConfig, place: Path) -> Iterator[Prompt]:
    field = config.generate.field
    if is_plain(place):
        for number, line in read_lines(place, config.data.encoding):
            yield Prompt(text=line, record={field: line}, place=f"{place}, line {number}")
        return
    for row in rows_of(open_rows(place, encoding=config.data.encoding, quotes=config.data.quotes)):
        where = f"{place}, {row.place}"
        text = row.record.get(field)
        if not isinstance(text, str):
            columns = list(row.record)
            hint = suggest(field, columns) or f"; it has: {', '.join(columns)}"
            raise DataError(f"{where}: has no text in field '{field}'{hint}; generate.field= names another")
        if taken := [name for name in ADDED if name in row.record]:
            raise DataError(f"{where}: has a field '{taken[0]}', which generate adds; rename it")
        yield Prompt(text=text, record=row.record, place=where)


def _opened(config: PipelineConfig, base: Artifact) -> OpenCheckpoint:
    from adapt.checkpoint.open_checkpoint import open_checkpoint  # imports torch

    say_precision(config.scorer.auto_precision())
    delta_base = Path(config.model.path) if isinstance(config.model, HFConfig) else None
    return open_checkpoint(weights_of(base), config.scorer.resolved(), config.offload, delta_base)


def _stream(config: PipelineConfig, opened: OpenCheckpoint, rules: TextRules, tokens: Sequence[int]) -> None:
    """Write one prompt's text to standard output as it grows."""
    written = 0

    def watch(_: int, added: Sequence[int]) -> None:
        say(rules.settled(added))

    def say(text: str) -> None:
        nonlocal written
        sys.stdout.write(shown(text[written:], kept="\n\t"))
        sys.stdout.flush()
        written = max(written, len(text))

    from adapt.model.generating import generate, keys_of  # imports torch

    keys, started = keys_of([tokens], config.seed), time.monotonic()
    [answer] = generate(opened.model, rules, [tokens], keys, config.generate, opened.device, watch)
    seconds = time.monotonic() - started
    say(answer.text)
    sys.stdout.write("\n")
    logger.info(
        "generate: %d tokens in %.1f s (%.1f a second), ended by %s",
        answer.n_tokens, seconds, answer.n_tokens / max(seconds, 1e-9), answer.ending.value,
    )  # fmt: skip


def _write(
    config: PipelineConfig,
    opened: OpenCheckpoint,
    rules: TextRules,
    prompts: Sequence[Prompt],
    tokens: Sequence[Sequence[int]],
    base: Artifact,
    output: str,
) -> None:
    """Continue prompts part by part, but for the parts that are there, and write all of them to `output`."""
    from adapt.model.generating import generate, keys_of  # imports torch

    chosen = to_plain(replace(config.generate, prompt=None))
    key = digest_of([_VERSION, base.digest, chosen, config.seed, config.scorer.resolved().precision.value, list(map(list, tokens))])
    work, started = Path(config.run.dir) / f".generate-{key[:20]}", time.monotonic()
    keys, n_tokens = keys_of(tokens, config.seed), 0
    with writable(work):
        work.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(prompts), _PART_ROWS)
        for start in progress(starts, f"continuing {len(prompts):,} prompts", total=len(starts), unit="part"):
            part, some = work / f"part-{start:08d}.jsonl", slice(start, start + _PART_ROWS)
            if part.is_file():
                continue
            answers = generate(opened.model, rules, tokens[some], keys[some], config.generate, opened.device)
            n_tokens += sum(answer.n_tokens for answer in answers)
            write_atomically(part, "".join(map(_line, prompts[some], answers)))
        joined = work / "all.jsonl"
        with joined.open("wb") as stream:
            for part in sorted(work.glob("part-*.jsonl")):
                stream.write(part.read_bytes())
        columns = [*dict.fromkeys(name for prompt in prompts for name in prompt.record), *ADDED]
        write_rows(output, joined, columns)
        shutil.rmtree(work)
    seconds = time.monotonic() - started
    logger.info(
        "generate: %d texts, %d new tokens in %.1f s (%.1f a second) -> %s",
        len(prompts), n_tokens, seconds, n_tokens / max(seconds, 1e-9), "standard output" if output == STANDARD else output,
    )  # fmt: skip


def _line(prompt: Prompt, answer: Generated) -> str:
    added = dict(zip(ADDED, (answer.text, answer.n_tokens, answer.ending.value), strict=True))
    return json.dumps({**without_nan(prompt.record), **added}, ensure_ascii=False, allow_nan=False) + "\n"
