"""A stage's key follows from what it declares to read, and building sees nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapt.core.artifacts import Artifact
from adapt.model.config import GPTConfig
from pipelines.config.commands import COMMANDS, STARTS_RANKS
from pipelines.config.locations import demo_dir
from pipelines.stages.contract import Files, Reads, Stage, Workshop, key_of
from pipelines.stages.import_checkpoint import ImportReads
from pipelines.stages.rows import TaskData, UndeclaredRead
from pipelines.stages.run import Run
from pipelines.stages.scores import ScorerReads
from pipelines.walk.order import STAGES, stage_named
from pseudo_label.tasks import TaskConfig
from tests.support.command_line import SMALLEST, composed

TASK = "demo_topics"
REST = ["force=true", "evaluate.other_tasks=[demo_reviews]", "data.corpus=[{corpus}]", "gate.max_general_ppl_increase=9.0"]


def run_of(runs: Path, *more: str) -> Run:
    rest = [word.replace("{corpus}", f"{demo_dir()}/corpus/*.txt") for word in REST]
    return Run(composed("run", [*SMALLEST, f"tasks=[{TASK}]", f"run.dir={runs}", *rest, *more]))


UNREAD: Any = None  # for a field that is no part of a key


def reads_of(name: str, runs: Path) -> Reads:
    """Return what a stage of the smallest run reads."""
    if name == "import_checkpoint":  # the smallest run has a base of its own
        source = dataclasses.replace(run_of(runs).base(), stage="source")
        return ImportReads(
            importer="one", residual_axis=0, model=GPTConfig(n_layers=2, hidden_size=8, n_heads=2, vocab_size=9, context_length=8),
            source=source, files=Files({"tokenizer": demo_dir() / "README.md"}), foreign=UNREAD, text_tokenizer=None,
            keeps_text=None,
        )  # fmt: skip
    stage = stage_named(name)
    run = run_of(runs)
    found: Reads = stage.reads(run, run.tasks()[0] if stage.is_per_task else None)
    return found


def fields_in(reads: Reads) -> Iterator[tuple[tuple[Any, ...], dataclasses.Field[Any], Any]]:
    """Return every field with the way to it: names of fields, and numbers of places in tuples."""
    for field in dataclasses.fields(reads):
        value = getattr(reads, field.name)
        yield (field.name,), field, value
        if "unkeyed" in field.metadata:
            continue
        if isinstance(value, Reads):
            for way, inner, held in fields_in(value):
                yield (field.name, *way), inner, held
        elif isinstance(value, tuple):
            for number, one in enumerate(value):
                if isinstance(one, Reads):
                    for way, inner, held in fields_in(one):
                        yield (field.name, number, *way), inner, held


def replaced(reads: Any, way: tuple[Any, ...], value: Any) -> Any:
    """Return the reads with another value at the end of a way."""
    if not way:
        return value
    if isinstance(reads, tuple):
        return tuple(replaced(one, way[1:], value) if number == way[0] else one for number, one in enumerate(reads))
    return dataclasses.replace(reads, **{way[0]: replaced(getattr(reads, way[0]), way[1:], value)})


def changes_of(value: Any, place: Path) -> Iterator[Any]:
    """Return other values of a field's kind: another content of each file, another digest of each artifact."""
    if isinstance(value, Files):
        for name, path in value.paths.items():
            place.write_bytes(path.read_bytes() + b"\n")
            yield Files({**value.paths, name: place})
        yield Files({**value.paths, "another": place})
    elif isinstance(value, Artifact):
        yield dataclasses.replace(value, digest="another")
    elif isinstance(value, Mapping) and value and all(isinstance(one, Artifact) for one in value.values()):
        for name, one in value.items():
            yield {**value, name: dataclasses.replace(one, digest="another")}
    elif isinstance(value, TaskConfig):
        turned = dict(reversed(list(value.label_words.items())))
        yield dataclasses.replace(value, label_words=turned)
        yield dataclasses.replace(value, lexical=dataclasses.replace(value.lexical, rounds=7))
    else:
        yield "another"


@pytest.mark.parametrize("name", STAGES)
def test_every_declared_input_changes_the_key_and_nothing_else_does(name: str, copied_run: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").write_bytes(b"something")
    reads = reads_of(name, copied_run)
    before = key_of(name, 1, reads).digest()
    assert key_of(name, 1, reads_of(name, copied_run)).digest() == before
    n_keyed = 0
    for way, field, value in fields_in(reads):
        if "unkeyed" in field.metadata:
            assert len(field.metadata["unkeyed"].split()) > 2, f"{way}: say why no result depends on it"
            assert key_of(name, 1, replaced(reads, way, "another")).digest() == before, way
        elif not isinstance(value, Reads) and not (isinstance(value, tuple) and value and isinstance(value[0], Reads)):
            for other in changes_of(value, tmp_path / "scratch"):
                assert key_of(name, 1, replaced(reads, way, other)).digest() != before, way
                n_keyed += 1
    assert n_keyed > 1
    assert key_of(name, 2, reads).digest() != before


class NoRun(Run):
    """What is left of a run once a stage has declared what it reads."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"building reads run.{name}, which is not declared")


@pytest.mark.parametrize("name", ["tokenizer", "pseudo_label", "evaluate", "export", "predict", "report"])
def test_stages_build_with_the_configuration_out_of_reach(
    name: str, copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stage = run_of(copied_run), stage_named(name)
    reads = stage.reads(run, run.tasks()[0] if stage.is_per_task else None)
    run.__class__ = NoRun
    for place in ("result", "work"):
        (tmp_path / place).mkdir()
    shop = Workshop(object.__getattribute__(run, "store"), "demo", force=False)
    stage.build(reads, shop, tmp_path / "result", tmp_path / "work")
    assert any((tmp_path / "result").iterdir())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedReads(Reads):
    """A task of which dev is declared."""

    data: TaskData


class Planted(Stage[PlantedReads]):
    """A stage that reads a split which it does not declare."""

    name = "planted"

    def reads(self, run: Run, task: TaskConfig | None) -> PlantedReads:
        assert task is not None
        return PlantedReads(data=TaskData.of(run, task, ["dev"]))

    def build(self, reads: PlantedReads, shop: Workshop, result: Path, work: Path) -> dict[str, Any]:
        return {"dev": len(reads.data.read("dev")), "unlabeled": len(reads.data.read("unlabeled"))}

    def describe(self, artifact: Artifact) -> str:
        return "never"


def test_a_planted_undeclared_read_is_found(copied_run: Path) -> None:
    run = run_of(copied_run)
    with pytest.raises(UndeclaredRead, match="split 'unlabeled' is read and not declared"):
        run.run_stage(Planted(), run.tasks()[0])
    assert not (copied_run / "demo" / "planted").exists()


class Recorded:
    """A section of the configuration that notes which of its keys are asked for, and looks like the section otherwise."""

    def __init__(self, held: Any, path: str, seen: set[str]) -> None:
        self._held, self._path, self._seen = held, path, seen

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:  # what isinstance looks at
        return type(self._held)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._held, name)
        if name not in {field.name for field in dataclasses.fields(self._held)}:
            self._seen.add(self._path)  # a method or property may look at all of it
            return value
        place = f"{self._path}.{name}".removeprefix(".")
        if dataclasses.is_dataclass(value):
            return Recorded(value, place, self._seen)
        self._seen.add(place)
        return value


def taken_whole(reads: Any) -> Iterator[str]:
    """Return the sections that a stage keeps as they are; of an engine that only starts ranks for scoring, the keys for that."""
    if isinstance(reads, ScorerReads):
        yield from STARTS_RANKS
        reads = dataclasses.replace(reads, engine=None)  # type: ignore[arg-type]
    if type(reads) is Recorded:
        yield object.__getattribute__(reads, "_path")
    elif isinstance(reads, Reads):
        for field in dataclasses.fields(reads):
            yield from taken_whole(getattr(reads, field.name))


@pytest.mark.parametrize("name", [name for name in STAGES if name != "import_checkpoint"])
def test_the_help_lists_every_key_that_a_stage_reads(name: str, copied_run: Path) -> None:
    run, stage, seen = run_of(copied_run), stage_named(name), set[str]()
    task = run.tasks()[0] if stage.is_per_task else None
    run.config = Recorded(run.config, "", seen)  # type: ignore[assignment]
    seen |= set(taken_whole(stage.reads(run, task)))
    listed = next(command.reads for command in COMMANDS if command.name == name)
    assert listed is not None
    unlisted = [key for key in sorted(seen) if not any(key == one or key.startswith(f"{one}.") for one in listed)]
    assert seen
    assert unlisted == []
