"""What stages leave behind for those that come after them: typed views of artifacts' metrics.

A stage writes one of these as the metrics of its manifest; whoever reads them asks `of(artifact)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adapt.core.artifacts import MANIFEST, Artifact
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.typed import from_plain, to_plain
from adapt.objective_config import BASE_DIVERGENCE, DISTILLATION
from pseudo_label.accuracy import Accuracy

REPORT_FILE = "report.html"  # here, so that whoever names the page need not import what draws it
NEAR_FILE = "near.json"  # the nearest of the documents that an adaptation read
P = TypeVar("P", bound="Product")


@dataclass(frozen=True, kw_only=True)
class Product:
    """The base of products."""

    def metrics(self) -> dict[str, Any]:
        """Return the product as a stage's metrics."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def of(cls: type[P], artifact: Artifact) -> P:
        """Read an artifact's metrics. Raises CheckpointError where they are not those of such a product."""
        try:
            return from_plain(cls, artifact.metrics, str(artifact.path / MANIFEST))
        except ConfigError as error:
            raise CheckpointError(f"{error}; another version wrote it: run stage {artifact.stage} again") from error


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """A teacher's weight in the sum, and its accuracy as estimated without labels; none for a single teacher."""

    weight: float | None = None
    estimated: float | None = None


@dataclass(frozen=True, kw_only=True)
class Labels(Product):
    """Of `pseudo_label`: how many rows were labelled, selected, held out and kept out, and how right labels seem to be.

    `disagreement` is 1 - the mean agreement of prompts and teachers on the selected rows. `labelled` is the accuracy on labelled
    rows that are as sure as the selected ones, `measured` that of each teacher on all labelled rows. `taught` holds the share of
    labels that each round of teaching changed.
    """

    rows: int
    selected: int
    held_out: int
    excluded: int = 0
    sharing_a_passage: int = 0
    selected_by_class: dict[str, int] = field(default_factory=dict)
    empty_classes: list[str] = field(default_factory=list)
    largest_class_share: float = 0.0
    teachers: dict[str, TeacherRecord] = field(default_factory=dict)
    taught: list[float] = field(default_factory=list)
    disagreement: float | None = None
    labelled: Accuracy | None = None
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def said_of_teachers(self) -> str:
        """Each teacher's estimated accuracy, and the one measured where rows are labelled, in words."""
        said = []
        for name, teacher in self.teachers.items():
            text = name if teacher.estimated is None else f"{name} {100 * teacher.estimated:.0f} % estimated"
            said.append(f"{text} ({100 * self.measured[name]:.0f} % measured)" if name in self.measured else text)
        together = f"; together {100 * self.measured['together']:.0f} % measured" if "together" in self.measured else ""
        return "teachers: " + ", ".join(said) + together


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the loss: its mean in nats, over how many tokens."""

    value: float
    count: float


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The losses of held-out rows by part, before and after training."""

    before: dict[str, Part]
    after: dict[str, Part]

    @property
    def token_losses(self) -> tuple[float, float]:
        """The mean losses over the tokens of all kinds, before and after."""
        return _token_loss(self.before), _token_loss(self.after)

    def __str__(self) -> str:
        """The loss of the text itself apart from those of prompt and label words, before and after."""
        counted = [name for name, part in self.before.items() if part.count and name in self.after and name != "balance"]
        said = [f"{name} {self.before[name].value:.3f} -> {self.after[name].value:.3f}" for name in counted]
        return said[0].removeprefix("context ") if len(said) == 1 else ", ".join(said)


@dataclass(frozen=True, kw_only=True)
class Training(Product):
    """Of training stages: held-out losses by domain or task, and how the job went; `attempts` counts starts.

    `peak_bytes` is the most memory that rank 0 held, `planned_bytes` what a rank was planned to take for rows of `row_tokens`, the
    longest. `kept_change` is the share of the weights' change that general text allowed.
    """

    held_out: dict[str, HeldOut] = field(default_factory=dict)
    steps: int = 0
    loss: float = 0.0
    tokens_per_s: float = 0.0
    attempts: int = 1
    skipped_steps: int = 0
    kept_change: float = 1.0
    peak_bytes: int | None = None
    planned_bytes: int | None = None
    row_tokens: int | None = None

    def __str__(self) -> str:
        losses = [f"{name} {held_out}" for name, held_out in self.held_out.items()]
        skipped = f" ({self.skipped_steps} of them skipped, their gradients overflowed fp16)" if self.skipped_steps else ""
        return f"{self.steps} steps{skipped}, {self.tokens_per_s:.0f} tokens/s, held-out loss per token: " + "; ".join(losses)


@dataclass(frozen=True, kw_only=True)
class GeneralPerplexity:
    """Perplexity on general text before and after; `increase` is after / before - 1, `ci95` its interval over the rows."""

    before: float
    after: float
    increase: float
    ci95: tuple[float, ...]
    tokens: int

    def __str__(self) -> str:
        low, high = self.ci95
        change = f"{100 * self.increase:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"
        nats = f"{math.log(self.before):.3f} -> {math.log(self.after):.3f} nats a token"
        return f"general perplexity {self.before:.1f} -> {self.after:.1f} ({change}; {nats})"


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """Greedy continuations of general text before and after: how many changed, and the share of words' runs in several."""

    count: int
    changed: int
    shared_before: float
    shared_after: float

    def __str__(self) -> str:
        shared = f"{100 * self.shared_before:.0f} -> {100 * self.shared_after:.0f} %"
        return f"{self.changed} of {self.count} greedy continuations changed, words shared between them {shared}"


@dataclass(frozen=True, kw_only=True)
class ReadText(Product):
    """General text that an adaptation read besides its rows: how it was chosen and when it was read, in rows of the context.

    `by_domain` has the number of chosen and of all documents, `nearness` the mean log ratio an n-gram of the chosen and of all;
    `kept_out` documents share a passage with evaluation texts and were near enough.
    """

    choice: str
    when: str
    documents: int
    characters: int
    rows: int
    by_domain: dict[str, tuple[int, ...]]
    nearness: tuple[float, ...]
    kept_out: int

    def __str__(self) -> str:
        domains = sorted(((n, name) for name, (n, _) in self.by_domain.items() if n), reverse=True)
        near, usual = self.nearness
        kept_out = f", {self.kept_out:,} kept out as evaluation texts" if self.kept_out else ""
        return (
            f"{self.documents:,} {self.choice} documents ({', '.join(f'{name} {n:,}' for n, name in domains)}) as {self.rows:,} "
            f"rows {self.when} the task's, {near:+.2f} nats an n-gram nearer to the task, the whole corpus {usual:+.2f}{kept_out}"
        )


@dataclass(frozen=True, kw_only=True)
class Adaptation(Training):
    """Of `continue_pretrain`: where nothing was adapted, or the gate took it back, the base stands and there are no weights.

    `teachers` are those whose labels it was trained on.
    """

    is_adapted: bool
    teachers: list[str] = field(default_factory=list)
    text: ReadText | None = None
    general: GeneralPerplexity | None = None
    continuations: Continuations | None = None

    @property
    def is_rolled_back(self) -> bool:
        return self.general is not None and not self.is_adapted

    def __str__(self) -> str:
        if self.is_rolled_back:
            return f"rolled back, the base model stands: {self._forgotten}, more than the gate allows"
        if not self.is_adapted:
            return "no pseudo-labels to train on: the base model stands"
        read = "" if self.text is None else f"; read {self.text}"
        kept = f"; {100 * self.kept_change:.0f} % of the change kept" if self.kept_change < 1 else ""
        return super().__str__() + read + kept + ("" if self.general is None else f"; {self._forgotten}")

    @property
    def _forgotten(self) -> str:
        return "; ".join(str(found) for found in (self.general, self.continuations) if found is not None)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Product):
    """Of `evaluate`: lines of accuracies, of criteria beside each other, of coarse-to-fine's losses, and of other tasks.

    `findings` say which labelled rows are copies of others, and which texts have several labels.
    """

    table: list[dict[str, Any]] = field(default_factory=list)
    criteria: list[dict[str, Any]] = field(default_factory=list)
    coarse_to_fine: list[dict[str, Any]] = field(default_factory=list)
    other_tasks: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def _token_loss(parts: Mapping[str, Part]) -> float:
    counted = [part for name, part in parts.items() if name not in ("balance", DISTILLATION, BASE_DIVERGENCE)]
    count = sum(part.count for part in counted)
    return sum(part.value * part.count for part in counted) / count if count else 0.0
