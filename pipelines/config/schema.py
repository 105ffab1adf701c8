"""The configuration of the whole pipeline: one tree of dataclasses, each kept beside the code it configures.

Every stage takes from it only what it reads; what it reads is what its artifact's key is made of.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from adapt.checkpoint.import_options import ImportOptions
from adapt.checkpoint.offload import OffloadConfig
from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.spans import LabelForm
from adapt.model.config import GPTConfig, HFConfig
from adapt.objective_config import ObjectiveConfig
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.rows.encodings import check_encoding
from adapt.text.tokenizer import TokenizerConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.tracking import TrackerConfig
from adapt.train.train_config import Trained
from pipelines.config.setting_checks import refuse_below, refuse_no_share, refuse_shortlist
from pseudo_label.adaptation_data import ReadingConfig
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.decision import LEXICAL_WEIGHT, Method
from pseudo_label.label_tree import TreeSource
from pseudo_label.selection import SelectionConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where results go: `<dir>/<name>/<stage>[/<task>]`."""

    name: str = "default"
    dir: str = "runs"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Input data: a directory in the CLUE layout, and corpus files or patterns.

    A corpus text's domain is its file's name up to the first underscore, or what the field `domain_field` of its row says.
    `encoding` is that of all files of rows and texts (absent: UTF-8, GB18030 and UTF-16 are recognised).
    """

    root: str | None = None
    corpus: list[str] = field(default_factory=list)
    domain_field: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        check_encoding(self.encoding, "encoding")

    def reading(self) -> dict[str, str]:
        """Return what the key of a stage that reads corpus files needs beside their content."""
        return {} if self.encoding is None else {"encoding": self.encoding}


class ExcludeEval(enum.Enum):
    """Which evaluation texts are kept out of adaptation: none, those measured on (dev and few), or those of test too."""

    NONE = "none"
    DEV = "dev"
    ALL = "all"

    @property
    def splits(self) -> list[str]:
        return {"none": [], "dev": ["dev", "few"], "all": ["dev", "few", "test"]}[self.value]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Base pretraining.

    `span_mask_share` of the documents have a short span masked, so that <mask> is trained; these few tokens' mean loss counts
    `span_mask_weight` beside the context's 1. `repeats` says how often a domain's documents come in an epoch (absent: once).
    `save_precision` is that of the finished checkpoint's weights; training itself always keeps fp32 masters. With `keeps_moments`
    the optimizer's moments are kept with the base, twice its size in fp32, for `continue_pretrain.moments=keep`.
    """

    steps: int = 1000
    batch_rows: int = 32
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-3))
    save_every_steps: int = 200
    held_out_share: float = 0.01
    held_out_rows: int = 64
    span_mask_share: float = 0.1
    span_mask_weight: float = 0.1
    repeats: dict[str, int] | None = None
    save_precision: Precision = Precision.FP32
    keeps_moments: bool = False

    def __post_init__(self) -> None:
        refuse_below(1, steps=self.steps, batch_rows=self.batch_rows, save_every_steps=self.save_every_steps)
        refuse_below(0, **{f"repeats.{domain}": count for domain, count in (self.repeats or {}).items()})
        refuse_no_share(held_out_share=self.held_out_share, span_mask_share=self.span_mask_share)
        if self.save_precision is Precision.AUTO:
            raise ConfigError("save_precision: auto is for computing; a file is fp32, bf16 or fp16")


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """How often a task is labelled: `count` times at most, from the second on by the model adapted in the round before.

    Each round adapts the base anew. Rounds stop early when fewer than `min_change` of the labels changed, and when the labels'
    noise (1 - mean agreement of the selected) rose by more than `max_noise_increase` or one class took over more than
    `pseudo_label.collapse_limit` of the predictions: then the round before stands.
    """

    count: int = 1
    min_change: float = 0.02
    max_noise_increase: float = 0.05

    def __post_init__(self) -> None:
        refuse_below(1, count=self.count)
        refuse_no_share(min_change=self.min_change, max_noise_increase=self.max_noise_increase)


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
class PseudoLabelConfig:
    """Pseudo-labelling: at most `max_rows` unlabeled rows, of which `held_out_share` measure and never train.

    The `teachers` score the rows and are summed as `weighting` says; `teacher_weights` replaces weights of `fixed`. For
    `teaching_rounds` the lexical one learns again from the sum. `teacher_file` holds the labels of the teacher `file`; `encoder` is
    the checkpoint or Hugging Face directory whose hidden states the teacher `embedding` reads (absent: the labelling model).
    `method` decides on the model's own scores. With a `shortlist` the model is asked about so many labels of a row, the best by the
    lexical teacher; some rows are scored in full, since its decision is fitted on all labels.

    `form` absent scores labels the way they will be trained. `coarse` says how coarse-to-fine decides. With `estimates_noise`,
    labelled evaluation splits are labelled too, to say how often labels as sure as the selected ones are right.
    """

    teachers: list[Teacher] = field(default_factory=lambda: [Teacher.MODEL, Teacher.LEXICAL])
    weighting: Weighting = Weighting.FIXED
    teacher_weights: dict[str, float] | None = None
    teacher_file: str | None = None
    teaching_rounds: int = 1
    encoder: str | None = None
    shortlist: int | None = None
    method: Method = Method.ENSEMBLE
    prompts: list[str] | None = None
    criterion: str | None = None
    form: LabelForm | None = None
    coarse_to_fine: bool = False
    coarse: CoarseToFine = field(default_factory=CoarseToFine)
    max_rows: int | None = 3000
    held_out_share: float = 0.1
    collapse_limit: float = 0.9
    estimates_noise: bool = True
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 0:
            raise ConfigError(f"max_rows: {self.max_rows} is negative; null takes all rows")
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise ConfigError("teachers: an empty list, or a teacher twice; name each once, e.g. [model,lexical]")
        unknown = [name for name in self.teacher_weights or {} if name not in {teacher.value for teacher in self.teachers}]
        if unknown:
            raise ConfigError(f"teacher_weights: '{unknown[0]}' is none of teachers={[teacher.value for teacher in self.teachers]}")
        if self.teacher_weights and self.weighting is Weighting.ESTIMATED:
            raise ConfigError("teacher_weights: weighting=estimated sets them; leave one of the two out")
        if any(weight <= 0 for weight in (self.teacher_weights or {}).values()):
            raise ConfigError("teacher_weights: a weight must be above 0; leave the teacher out instead")
        if self.method.needs_lexical:
            raise ConfigError(f"method={self.method.value}: decides on the model's scores only; use teachers=[model,lexical]")
        refuse_below(0, teaching_rounds=self.teaching_rounds)
        refuse_shortlist(self.shortlist, coarse_to_fine=self.coarse_to_fine)
        if self.shortlist is not None and not {Teacher.MODEL, Teacher.LEXICAL} <= set(self.teachers):
            raise ConfigError("shortlist: the lexical teacher makes it for the model; name both in teachers, or set it to null")
        if self.prompts is not None and not self.prompts:
            raise ConfigError("prompts: an empty list; name prompts of the task, or null for its own choice")
        refuse_no_share(held_out_share=self.held_out_share, collapse_limit=self.collapse_limit)


class MomentsStart(enum.Enum):
    """Where the optimizer's moments of an adaptation come from."""

    FRESH = "fresh"
    KEEP = "keep"


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(ReadingConfig):
    """Continued pretraining on the selected rows, read as `ReadingConfig` says; `trains` is what it changes of the model.

    The optimizer's moments start at 0 (`moments=fresh`) or are those that the base was trained with (`keep`). `replay_share` of an
    epoch's rows are general text of `data.corpus`. The tasks in `joint` are adapted together, to one model: an epoch has each
    selected row of a task as often as its weight there says.
    """

    epochs: float = 2.0
    batch_rows: int = 32
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4))
    save_every_steps: int = 100
    trains: Trained = Trained.ALL
    moments: MomentsStart = MomentsStart.FRESH
    replay_share: float = 0.0
    joint: dict[str, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs <= 0:
            raise ConfigError(f"epochs: {self.epochs} trains nothing; give more than 0, or leave continue_pretrain out of stages")
        refuse_below(1, batch_rows=self.batch_rows, save_every_steps=self.save_every_steps)
        if not 0 <= self.replay_share < 1:
            raise ConfigError(f"replay_share: {self.replay_share} is not a share below 1 of an epoch's rows")
        wrong = [name for name, weight in (self.joint or {}).items() if weight <= 0]
        if wrong:
            raise ConfigError(f"joint.{wrong[0]}: a weight must be above 0; leave the task out instead")

    def reading(self) -> ReadingConfig:
        """Return how rows are read."""
        return ReadingConfig(prompt=self.prompt, soft_labels=self.soft_labels, reads_unselected=self.reads_unselected)


class GateAction(enum.Enum):
    """What happens to an adaptation that forgets too much: the run stops with an error, or the base stands for the task."""

    STOP = "stop"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How much an adaptation may forget.

    Where `data.corpus` is given, perplexity is measured on `general_rows` rows of its held-out documents before and after. It may
    rise by the share `max_general_ppl_increase` (absent: by any); beyond that, `action` is taken.
    """

    max_general_ppl_increase: float | None = None
    action: GateAction = GateAction.STOP
    general_rows: int = 64

    def __post_init__(self) -> None:
        refuse_below(1, general_rows=self.general_rows)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation: every method on the labelled splits; `method` also decides submissions and exports.

    `combined` adds the lexical labeller's scores to the model's, `lexical_weight` times at equal spread. With a `shortlist` it
    chooses among so many labels of a row, the best by the lexical labeller, and an export asks the model about no others.

    `criteria` are compared beside each other on dev and few together, under the reference prompt. Calibration is fitted on
    `fit_rows` unlabeled rows. `splits` are taken where a task has them; `form` absent scores labels the
    way they were trained. The labelled rows of `other_tasks` are answered by base and adapted model too: what a task unlearns them.
    """

    splits: list[str] = field(default_factory=lambda: ["dev", "few", "test"])
    method: Method = Method.COMBINED
    methods: list[Method] = field(
        default_factory=lambda: [Method.LEXICAL, Method.RAW, Method.PRIOR, Method.ENSEMBLE, Method.COMBINED]
    )
    lexical_weight: float = LEXICAL_WEIGHT
    shortlist: int | None = None
    criterion: str | None = None
    criteria: list[str] = field(default_factory=list)
    other_tasks: list[str] = field(default_factory=list)
    coarse_to_fine: bool = False
    coarse: CoarseToFine = field(default_factory=CoarseToFine)
    form: LabelForm | None = None
    fit_rows: int = 500

    def __post_init__(self) -> None:
        if self.fit_rows < 0:
            raise ConfigError(f"fit_rows: {self.fit_rows} is negative; 0 fits nothing")
        refuse_shortlist(self.shortlist, coarse_to_fine=self.coarse_to_fine)
        if self.lexical_weight <= 0:
            raise ConfigError(f"lexical_weight: {self.lexical_weight:g} is not above 0; leave `combined` out of methods instead")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Labelling rows: `prefix` stands before the names of the columns that are added, `prediction` and `probability`."""

    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelTreeConfig:
    """A proposed label tree: `groups` (absent: as many as the task has, else the root of its labels) of `min_size` to `max_size`.

    For `confusions`, `rows` unlabeled rows are scored (as many as `pseudo_label.max_rows`: that stage's scores are taken), and
    `labelled_weight` is the share that labelled rows have in the likeness.
    """

    source: TreeSource = TreeSource.EMBEDDINGS
    groups: int | None = None
    min_size: int = 1
    max_size: int | None = None
    rows: int = 500
    labelled_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PromptSearchConfig:
    """Judging the prompts of `file` (absent: the task's own) on `rows` unlabeled rows; the `top` best are suggested together.

    Accuracy is measured on at most `labelled_rows` rows of each labelled split (0: not at all).
    """

    file: str | None = None
    rows: int = 500
    labelled_rows: int | None = None
    top: int = 3


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Finished runs to compare: names or patterns of `run.dir`'s runs; `baseline` is the variant the others are held against."""

    runs: list[str] = field(default_factory=list)
    baseline: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImportConfig(ImportOptions):
    """How a foreign checkpoint is read, and its `tokenizer`: a SentencePiece model or a tokenizer.json (absent: none)."""

    tokenizer: str | None = None

    def options(self) -> ImportOptions:
        """Return what importers look at."""
        return ImportOptions(
            residual_axis=self.residual_axis,
            drop_tokens=self.drop_tokens,
            vocab_size=self.vocab_size,
            checks_sums=self.checks_sums,
        )


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything. On the command line `task=NAME` is short for `tasks=[NAME]`.

    `checkpoint` overrides the run's own model where a stage needs one, `split` the splits to evaluate. `exclude_eval` says which
    evaluation texts are kept out of adaptation. `importer` and `source` are what `import_checkpoint` reads, and with what.
    """

    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    force: bool = False
    stages: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    task_dir: str | None = None
    checkpoint: str | None = None
    split: str | None = None
    exclude_eval: ExcludeEval = ExcludeEval.DEV
    input: str | None = None
    output: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: GPTConfig | HFConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    continue_pretrain: AdaptConfig = field(default_factory=AdaptConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    label_tree: LabelTreeConfig = field(default_factory=LabelTreeConfig)
    prompt_search: PromptSearchConfig = field(default_factory=PromptSearchConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    importer: str | None = None
    source: str | None = None
    import_checkpoint: ImportConfig = field(default_factory=ImportConfig)
