"""Settings of labelling and of measuring what labels and models are worth."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting, setting_of
from adapt.core.spans import LabelForm
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.decision import Method
from pseudo_label.selection import SelectionConfig


@dataclass(frozen=True, kw_only=True)
class RoundsConfig(Settings):
    """How often a task is labelled, from the second round on by the model adapted in the round before.

    Each round adapts the base anew. Where the labels' noise rose too much, or one class took over more than
    `pseudo_label.collapse_limit` of the predictions, the round before stands.
    """

    count: int = setting(1, "Most rounds of labelling and adapting.", least=1, unit="rounds")
    min_change: float = setting(0.02, "Rounds stop when a smaller share of the labels changed than this.", least=0, most=1)
    max_noise_increase: float = setting(
        0.05, "Rounds stop when the labels' noise, 1 - mean agreement of the selected, rose by more than this.", least=0, most=1
    )


class Teacher(enum.Enum):
    """Who labels: the model's prompts, the labeller without a model, the task's rules, embeddings, or a file of labels."""

    MODEL = "model"
    LEXICAL = "lexical"
    RULES = "rules"
    EMBEDDING = "embedding"
    FILE = "file"


class Weighting(enum.Enum):
    """How teachers are weighed: the lexical one four times, or all by their accuracies, estimated without labels."""

    FIXED = "fixed"
    ESTIMATED = "estimated"


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig(Settings):
    """Pseudo-labelling: unlabeled rows to labels, some of which are selected for training.

    The `teachers` score the rows and their scores are summed. With a `shortlist` some rows are scored in full all the same, since
    the model's decision is fitted on all labels.
    """

    teachers: list[Teacher] = setting_of(
        lambda: [Teacher.MODEL, Teacher.LEXICAL],
        "Who scores the rows: the model, the lexical labeller, the task's rules, embeddings, or a file; each once.",
    )
    weighting: Weighting | None = setting(
        None,
        "How teachers are weighed: the lexical one four times (fixed), or all by accuracies estimated without labels (estimated).",
        hint="null is estimated for a Hugging Face base, and fixed for any other",
    )
    teacher_weights: dict[str, float] | None = setting(
        None,
        "Weights by teacher that replace those of weighting=fixed.",
        above=0,
        hint="leave a teacher out of `teachers` instead of giving it 0",
    )
    teacher_file: str | None = setting(None, "Labels of the teacher `file`, by row.", form="file")
    teaching_rounds: int = setting(1, "How often the lexical teacher learns again from the sum.", least=0, unit="rounds")
    teaching_keeps: bool = setting(
        True, "The lexical teacher adds what it learns to what its seeds taught it; false learns anew, which can drift."
    )
    encoder: str | None = setting(
        None,
        "Model whose hidden states the teacher `embedding` reads.",
        form="checkpoint or Hugging Face directory",
        hint="null takes the labelling model",
    )
    shortlist: int | None = setting(
        None,
        "Labels of a row that the model is asked about, the best by the lexical teacher.",
        least=2,
        unit="labels",
        hint="1 leaves nothing to choose from; null asks about all labels",
    )
    method: Method = setting(Method.ENSEMBLE, "How the model's own scores become a decision.")
    prompts: list[str] | None = setting(None, "Prompts of the ensemble, by name.", hint="null takes the task's own choice")
    criterion: str | None = setting(
        None, "Criterion that ranks the labels when rows are labelled.", form="criterion", hint="null takes each prompt's own"
    )
    form: LabelForm | None = setting(
        None, "Form in which labels are scored for labelling.", hint="null takes the form that they are trained in"
    )
    coarse_to_fine: bool = setting(False, "Labels a row first by the groups of the task's label tree, then within them.")
    coarse: CoarseToFine = setting_of(CoarseToFine, "How coarse-to-fine labelling decides.")
    max_rows: int | None = setting(3000, "Most unlabeled rows that are labelled.", least=0, unit="rows", hint="null takes all rows")
    held_out_share: float = setting(0.1, "Share of the labelled rows that measure and never train.", least=0, most=1)
    collapse_limit: float = setting(
        0.9, "Labelling is refused when one class gets more than this share of the predictions.", least=0, most=1
    )
    estimates_noise: bool = setting(
        True, "Labels the labelled evaluation splits too, to say how often labels as sure as the selected ones are right."
    )
    selection: SelectionConfig = setting_of(SelectionConfig, "Which labels are trained on.")
    rounds: RoundsConfig = setting_of(RoundsConfig, "How often labelling and adapting are repeated.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise ConfigError("teachers: an empty list, or a teacher twice; name each once, e.g. [model,lexical]")
        unknown = [name for name in self.teacher_weights or {} if name not in {teacher.value for teacher in self.teachers}]
        if unknown:
            raise ConfigError(f"teacher_weights: '{unknown[0]}' is none of teachers={[teacher.value for teacher in self.teachers]}")
        if self.teacher_weights and self.weighting is Weighting.ESTIMATED:
            raise ConfigError("teacher_weights: weighting=estimated sets them; leave one of the two out")
        if self.method.needs_lexical:
            raise ConfigError(f"method={self.method.value}: decides on the model's scores only; use teachers=[model,lexical]")
        _refuse_two_ways(self.shortlist, coarse_to_fine=self.coarse_to_fine)
        if self.shortlist is not None and not {Teacher.MODEL, Teacher.LEXICAL} <= set(self.teachers):
            raise ConfigError("shortlist: the lexical teacher makes it for the model; name both in teachers, or set it to null")
        if self.prompts is not None and not self.prompts:
            raise ConfigError("prompts: an empty list; name prompts of the task, or null for its own choice")

    def settled(self, *, is_foreign: bool) -> PseudoLabelConfig:
        """Return the settings with nothing left open, for a Hugging Face base or another one; weights that are given stay fixed."""
        if self.weighting is not None:
            return self
        return replace(self, weighting=Weighting.ESTIMATED if is_foreign and not self.teacher_weights else Weighting.FIXED)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Evaluation: every method on the labelled splits, and predictions for splits without labels."""

    splits: list[str] = setting_of(lambda: ["dev", "few", "test"], "Splits that are evaluated, where a task has them.")
    method: Method = setting(
        Method.COMBINED, "Method that decides submissions and exports; combined adds the lexical scores to the model's."
    )
    methods: list[Method] = setting_of(
        lambda: [Method.LEXICAL, Method.RAW, Method.PRIOR, Method.ENSEMBLE, Method.COMBINED],
        "Methods whose accuracy is measured.",
    )
    lexical_weight: float | None = setting(
        None,
        "Weight of the lexical scores in `combined`; the model's scores have weight 1, at equal spread; null is 4, or estimated "
        "without labels for a Hugging Face base, and half of that for a model that several teachers taught.",
        above=0,
        hint="leave `combined` out of methods instead of giving 0",
    )
    shortlist: int | None = setting(
        None,
        "Labels of a row among which `combined` chooses, the best by the lexical labeller; an export asks about no others.",
        least=2,
        unit="labels",
        hint="1 leaves nothing to choose from; null keeps all labels",
    )
    criterion: str | None = setting(
        None, "Criterion that ranks the labels in evaluation.", form="criterion", hint="null takes that of each prompt"
    )
    criteria: list[str] = setting_of(list, "Criteria that are compared on dev and few together, under the reference prompt.")
    other_tasks: list[str] = setting_of(
        list, "Tasks whose labelled rows base and adapted model answer too: what adaptation unlearns of them."
    )
    coarse_to_fine: bool = setting(False, "Answers first by the groups of the task's label tree, then within them.")
    coarse: CoarseToFine = setting_of(CoarseToFine, "How coarse-to-fine evaluation decides.")
    form: LabelForm | None = setting(
        None, "Form in which labels are scored in evaluation.", hint="null takes the form that they were trained in"
    )
    fit_rows: int = setting(500, "Unlabeled rows that calibration is fitted on.", least=0, unit="rows", hint="0 fits nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_two_ways(self.shortlist, coarse_to_fine=self.coarse_to_fine)


def _refuse_two_ways(shortlist: int | None, *, coarse_to_fine: bool) -> None:
    """Raise ConfigError for a shortlist beside another way to spare labels."""
    if shortlist is not None and coarse_to_fine:
        raise ConfigError("shortlist: coarse_to_fine=true spares labels in another way; choose one of both")
