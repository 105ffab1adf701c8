"""The configuration of the whole pipeline: one tree of dataclasses, each kept beside the code it configures.

Every stage takes from it only what it reads; what it reads is what its artifact's key is made of.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from adapt.core.spans import LabelForm
from adapt.model.gpt import GPTConfig
from adapt.objective import ObjectiveConfig
from adapt.scoring.tree_scorer import ScorerConfig
from adapt.text.tokenizer import TokenizerConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer import OptimizerConfig
from adapt.train.tracking import TrackerConfig
from pseudo_label.decision import Method
from pseudo_label.selection import SelectionConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where results go: `<dir>/<name>/<stage>[/<task>]`."""

    name: str = "default"
    dir: str = "runs"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Input data. Texts of the `exclude_eval` splits are kept out of adaptation."""

    root: str | None = None
    corpus: list[str] = field(default_factory=list)
    exclude_eval: list[str] = field(default_factory=lambda: ["dev", "few"])


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Base pretraining.

    `span_mask_share` of the documents have a short span masked, so that <mask> is trained; these few tokens' mean loss counts
    `span_mask_weight` beside the context's 1.
    """

    steps: int = 1000
    batch_rows: int = 32
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-3))
    save_every_steps: int = 200
    held_out_share: float = 0.01
    held_out_rows: int = 64
    span_mask_share: float = 0.1
    span_mask_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Pseudo-labelling: at most `max_rows` unlabeled rows, of which `held_out_share` measure and never train."""

    method: Method = Method.ENSEMBLE
    prompts: list[str] | None = None
    criterion: str | None = None
    coarse_to_fine: bool = False
    max_rows: int | None = 3000
    held_out_share: float = 0.1
    collapse_limit: float = 0.9
    selection: SelectionConfig = field(default_factory=SelectionConfig)


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Continued pretraining on the selected rows."""

    epochs: float = 2.0
    batch_rows: int = 32
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4))
    save_every_steps: int = 100


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation: every method on the labelled splits; `method` also decides submissions and exports.

    Calibration is fitted on `fit_rows` unlabeled rows. `splits` are taken where a task has them; `form` absent scores labels the
    way they were trained.
    """

    splits: list[str] = field(default_factory=lambda: ["dev", "few", "test"])
    method: Method = Method.PRIOR
    methods: list[Method] = field(default_factory=lambda: [Method.RAW, Method.PRIOR, Method.ENSEMBLE])
    criterion: str | None = None
    coarse_to_fine: bool = False
    form: LabelForm | None = None
    fit_rows: int = 500


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything. On the command line `task=NAME` is short for `tasks=[NAME]`.

    `checkpoint` overrides the run's own model where a stage needs one, `split` the splits to evaluate.
    """

    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    force: bool = False
    stages: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    task_dir: str | None = None
    checkpoint: str | None = None
    split: str | None = None
    input: str | None = None
    output: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: GPTConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    continue_pretrain: AdaptConfig = field(default_factory=AdaptConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
