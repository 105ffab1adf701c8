"""The configuration of the whole pipeline: one tree of dataclasses, each kept beside the code it configures.

Every stage takes from it only what it reads; what it reads is what its artifact's key is made of.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from adapt.checkpoint.import_options import ImportOptions
from adapt.checkpoint.offload import OffloadConfig
from adapt.core.artifacts import STORE
from adapt.core.errors import ConfigError, is_file_name
from adapt.core.precision import Precision
from adapt.core.settings import Settings, about, setting, setting_of
from adapt.core.store_survey import Unneeded
from adapt.model.config import GPTConfig, HFConfig
from adapt.objective_config import ObjectiveConfig
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.cleaning.config import CorpusConfig
from adapt.text.rows.contract import Quotes
from adapt.text.rows.encodings import check_encoding
from adapt.text.tokenizer import TokenizerConfig
from adapt.text.vocabulary_extension import ExtensionConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.tracking import TrackerConfig
from pipelines.config.adapt_settings import AdaptConfig
from pipelines.config.distil_settings import DistilConfig
from pipelines.config.generate_settings import GenerateConfig
from pipelines.config.label_settings import EvaluateConfig, PseudoLabelConfig
from pipelines.config.plan_settings import PlanConfig
from pipelines.config.serve_settings import ServeConfig
from pipelines.config.sweep_settings import StudyConfig, SweepConfig
from pipelines.config.tune_settings import TuneConfig
from pseudo_label.label_tree import TreeSource


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where results go: `<dir>/<name>/<stage>[/<task>]`."""

    name: str = setting("default", "Name of the run; the same name continues it.", form="name")
    dir: str = setting("runs", "Directory that holds all runs and what they share.", form="directory")

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if parts[0] == STORE or not all(map(is_file_name, parts)):
            raise ConfigError(f"name: {self.name!r} is no name of a run below run.dir; give a plain one, such as news or news/long")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Input data. A corpus text's domain is its file's name up to the first underscore, unless `domain_field` says otherwise."""

    root: str | None = setting(
        None, "Tasks' rows in the CLUE layout, <task>/{dev,few,test,unlabeled}.{json,csv,...}.", form="directory"
    )
    files: dict[str, str] | dict[str, dict[str, str]] | None = setting(
        None,
        "Files of splits by name, in place of those of data.root; for several tasks by task, then by split.",
        form="file",
        hint="data.files={unlabeled: a.csv, dev: b.xlsx}, or data.files.titles.dev=b.xlsx for one split of task titles",
    )
    corpus: list[str] = setting_of(
        list,
        "General text: .txt and WET files, files of rows with a text, saved data sets, a cleaned corpus, or patterns.",
        form="files",
    )
    domain_field: str | None = setting(
        None, "Field of a jsonl row that names its text's domain.", form="field", hint="null takes it from the file's name"
    )
    encoding: str | None = setting(
        None,
        "Encoding of all files of rows and texts.",
        form="encoding",
        hint="null recognises UTF-8, GB18030 and UTF-16",
    )

    quotes: Quotes | None = setting(
        None,
        "What quotes in csv and tsv are: cells, a quoted cell may hold separators and line breaks; text, letters like others.",
        hint="null is cells, and refuses quotes that look like letters",
    )

    def __post_init__(self) -> None:
        check_encoding(self.encoding, "encoding")


class ExcludeEval(enum.Enum):
    """Which evaluation texts are kept out of adaptation: none, those measured on (dev and few), or those of test too."""

    NONE = "none"
    DEV = "dev"
    ALL = "all"

    @property
    def splits(self) -> list[str]:
        return {"none": [], "dev": ["dev", "few"], "all": ["dev", "few", "test"]}[self.value]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """Base pretraining. Training always keeps fp32 masters, whatever `save_precision` the finished weights have."""

    steps: int = setting(1000, "Optimizer steps of pretraining.", least=1, unit="steps")
    batch_rows: int = setting(32, "Rows of one optimizer step of pretraining, over all ranks.", least=1, unit="rows")
    optimizer: OptimizerConfig = setting_of(lambda: OptimizerConfig(lr=2e-3), "Optimizer of pretraining.")
    save_every_steps: int = setting(200, "How often pretraining saves a state to resume from.", least=1, unit="steps")
    held_out_share: float = setting(0.01, "Share of the documents that measure and never train.", least=0, most=1)
    held_out_rows: int = setting(64, "Most held-out rows of a domain that are measured.", least=0, unit="rows")
    span_mask_share: float = setting(
        0.1, "Share of the documents in which a short span is masked, so that <mask> is trained.", least=0, most=1
    )
    span_mask_weight: float = setting(0.1, "Weight of the masked tokens' mean loss; the context's is 1.", least=0)
    repeats: dict[str, int] | None = setting(
        None, "How often a domain's documents come in an epoch, by domain.", least=0, hint="null takes each once"
    )
    save_precision: Precision = setting(Precision.FP32, "Number format of the finished weights: fp32, bf16 or fp16.")
    keeps_moments: bool = setting(
        False, "Keeps the optimizer's moments with the base, for continue_pretrain.moments=keep; twice its size in fp32."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.lr is None or self.optimizer.warmup_share is None:
            raise ConfigError("optimizer: lr and warmup_share need numbers in pretraining; there is no base to choose them by")
        if self.save_precision is Precision.AUTO:
            raise ConfigError("save_precision: auto is for computing; a file is fp32, bf16 or fp16")


class GateAction(enum.Enum):
    """What happens to an adaptation that forgets too much.

    The run stops, a part of the change is kept, the base is used for the task, or it is only said.
    """

    STOP = "stop"
    SHRINK = "shrink"
    ROLL_BACK = "roll_back"
    WARN = "warn"


@dataclass(frozen=True, kw_only=True)
class GateConfig(Settings):
    """How much an adaptation may forget: perplexity and greedy continuations of general text, before and after.

    General text is that of held-out documents of `data.corpus`. Without a corpus, that of a Hugging Face base is its own: tokens
    drawn from it.
    """

    max_general_ppl_increase: float | None = setting(
        None,
        "Largest share by which perplexity on general text may rise.",
        above=-1,
        hint="null allows any rise, and 0.03 for a Hugging Face base",
    )
    action: GateAction | None = setting(
        None,
        "What a larger rise does: end the run with an error (stop), keep only as much of the change as the largest share allows "
        "(shrink), keep the base for the task (roll_back), or be said (warn); null stops where the largest share is set, and "
        "shrinks elsewhere.",
    )
    general_rows: int = setting(64, "Held-out rows of general text that perplexity is measured on.", least=1, unit="rows")
    continuations: int = setting(
        20, "Beginnings of general text that are continued greedily, before and after.", least=0, hint="0 continues none"
    )

    def settled(self, limit: float | None) -> GateConfig:
        """Return the gate with what was left open; a limit that was set stops the run, that of the base's kind shrinks."""
        is_set = self.max_general_ppl_increase is not None
        action = self.action or (GateAction.STOP if is_set else GateAction.SHRINK)
        return replace(self, max_general_ppl_increase=self.max_general_ppl_increase if is_set else limit, action=action)


class ExportForm(enum.Enum):
    """What an export holds of a model: all weights, in this project's form or in one that transformers opens, or only changes.

    Changes are those of a light adaptation, to a base that stays where it is. A Hugging Face base has transformers' form already.
    """

    MERGED = "merged"
    DELTA = "delta"
    HUGGING_FACE = "hugging_face"


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Labelling rows."""

    prefix: str = setting("", "Stands before the names of the added columns, `prediction` and `probability`.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Exporting an adapted model: what an export holds, and where it goes besides the run."""

    form: ExportForm = setting(
        ExportForm.MERGED,
        "What an export holds: the whole model (merged); the same as a directory that transformers opens without this package "
        "(hugging_face); or only what continue_pretrain.trains (all but all) changed of a Hugging Face base (delta).",
    )
    output: str | None = setting(
        None,
        "Directory of one's own for the export: real files, no links; with several tasks one directory in it for each.",
        form="directory",
        hint="null leaves it in the run",
    )
    harness_split: str | None = setting(
        None,
        "Split whose labelled rows the export brings along as tasks for lm-evaluation-harness and OpenCompass.",
        form="name",
        hint="null brings none; a model of this project needs export.form=hugging_face",
    )
    zero_shot_data: str | None = setting(
        None,
        "Directory with data of English zero-shot tasks (lambada.jsonl, piqa, boolq, race, triviaqa, webqs), which task files for "
        "lm-evaluation-harness will read.",
        form="directory",
        hint="null writes no such files; a model of this project needs export.form=hugging_face",
    )


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Settings):
    """What `clean` looks at and removes below `run.dir`."""

    remove: bool = setting(False, "Removes what is listed.", hint="false only shows it")
    kinds: list[Unneeded] = setting_of(
        lambda: list(Unneeded),
        "What is listed: results that no run links to, interrupted work, and litter.",
        hint="interrupted work is what the same command would go on from",
    )
    older_than_days: float = setting(0.0, "Leaves what was written more recently.", least=0, unit="days")
    keep_for: list[str] = setting_of(
        list,
        "Places elsewhere whose links and artifacts need what is here.",
        form="directories",
        hint="the directories beside run.dir and run directories that read from it are looked at in any case",
    )


@dataclass(frozen=True, kw_only=True)
class LabelTreeConfig(Settings):
    """A proposed label tree."""

    source: TreeSource = setting(
        TreeSource.EMBEDDINGS, "What makes labels alike: vectors of their words, or which ones the model confuses."
    )
    groups: int | None = setting(
        None, "Groups of the proposed tree.", least=2, hint="null takes as many as the task has, else the root of its labels"
    )
    min_size: int = setting(1, "Least labels of a group.", least=1, unit="labels")
    max_size: int | None = setting(None, "Most labels of a group.", least=1, unit="labels", hint="null sets no limit")
    rows: int = setting(
        500,
        "Unlabeled rows scored for source=confusions; with pseudo_label.max_rows of them that stage's scores are taken.",
        least=2,
        unit="rows",
    )
    labelled_weight: float = setting(0.0, "Share that labelled rows have in the likeness of labels.", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class PromptSearchConfig(Settings):
    """Judging prompts on unlabeled rows, and on labelled ones where there are some."""

    file: str | None = setting(None, "Prompts to judge, as a task file has them.", form="file", hint="null judges the task's own")
    rows: int = setting(500, "Unlabeled rows that prompts are judged on.", least=1, unit="rows")
    labelled_rows: int | None = setting(
        None,
        "Most rows of each labelled split that accuracy is measured on.",
        least=0,
        unit="rows",
        hint="0 takes none",
    )
    top: int = setting(3, "Best prompts that are suggested together.", least=1, unit="prompts")


@dataclass(frozen=True, kw_only=True)
class ImportConfig(ImportOptions):
    """How a foreign checkpoint is read."""

    tokenizer: str | None = setting(
        None,
        "The checkpoint's tokenizer: a SentencePiece model or a tokenizer.json.",
        form="file",
        hint="null imports none",
    )

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
    """Everything. On the command line `task=NAME` is short for `tasks=[NAME]`."""

    run: RunConfig = setting_of(RunConfig, "Where results go: <run.dir>/<run.name>/<stage>[/<task>].")
    seed: int = setting(0, "Seed of everything random: weights, order of data, samples of rows.")
    force: bool = setting(False, "Runs finished stages again.")
    stages: list[str] = setting_of(list, "Stages to walk; they run in the order data flows, whatever order they are named in.")
    tasks: list[str] = setting_of(list, "Tasks by name; task=NAME is short for tasks=[NAME].")
    task_dir: str | None = setting(None, "Task files of one's own, NAME.yaml; searched before the shipped ones.", form="directory")
    checkpoint: str | None = setting(
        None,
        "Model to start from in place of the run's own base.",
        form="artifact, export, checkpoint or Hugging Face directory",
        hint="the stages tokenizer and pretrain are then left out",
    )
    split: str | None = setting(
        None, "The one split to evaluate, any <task>/<split>.json of data.root.", form="name", hint="null takes evaluate.splits"
    )
    exclude_eval: ExcludeEval = setting(
        ExcludeEval.DEV, "Evaluation texts kept out of adaptation: none, those of dev and few (dev), or of test too (all)."
    )
    input: str | None = setting(
        None,
        "Rows to label: a file, the directory of a saved data set, or - for standard input.",
        form="file",
        hint="null takes the task's test split, else dev",
    )
    output: str | None = setting(None, "Where the command writes its result; - is standard output for predictions.", form="file")
    data: DataConfig = setting_of(DataConfig, "Input data: tasks' rows and general text.")
    corpus: CorpusConfig = setting_of(CorpusConfig, "Cleaning general text: filters, masks, evaluation texts, repeats.")
    tokenizer: TokenizerConfig = setting_of(TokenizerConfig, "How a tokenizer is trained.")
    model: GPTConfig | HFConfig = field(metadata=about("Sizes of the model; model=hf takes a Hugging Face model instead."))
    objective: ObjectiveConfig = setting_of(ObjectiveConfig, "The loss: its parts and how labels are trained.")
    engine: EngineConfig = setting_of(EngineConfig, "How a training step is computed: ranks, memory and precision.")
    scorer: ScorerConfig = setting_of(ScorerConfig, "How rows are scored: speed and memory; only precision changes scores.")
    offload: OffloadConfig = setting_of(
        OffloadConfig,
        "Where weights and the optimizer's state are, and what is verified on opening.",
    )
    runs: list[str] = setting_of(
        list,
        "Runs of run.dir that `report` compares on one page, by name or pattern; a sweep's name takes its points.",
        form="names",
    )
    baseline: str | None = setting(
        None,
        "Point of a sweep, or run of `runs`, that the others are compared with.",
        form="name",
        hint="null takes the first that is done",
    )
    sweep: SweepConfig = setting_of(SweepConfig, "What the points of a sweep tell a search.")
    tracker: TrackerConfig = setting_of(TrackerConfig, "Experiment tracking.")
    pretrain: PretrainConfig = setting_of(PretrainConfig, "Pretraining of a base on general text.")
    extend_vocabulary: ExtensionConfig = setting_of(ExtensionConfig, "More pieces for the vocabulary of a base.")
    distil: DistilConfig = setting_of(DistilConfig, "A dense student of a sparse base.")
    pseudo_label: PseudoLabelConfig = setting_of(PseudoLabelConfig, "Labelling unlabeled rows, and which labels are kept.")
    continue_pretrain: AdaptConfig = setting_of(AdaptConfig, "Continued pretraining on the selected rows.")
    gate: GateConfig = setting_of(GateConfig, "How much general language an adaptation may forget.")
    evaluate: EvaluateConfig = setting_of(EvaluateConfig, "Zero-shot evaluation and what decides answers.")
    export: ExportConfig = setting_of(ExportConfig, "Exporting an adapted model: what an export holds, and where it goes.")
    predict: PredictConfig = setting_of(PredictConfig, "Labelling rows of one's own.")
    generate: GenerateConfig = setting_of(GenerateConfig, "Continuing prompts: how tokens are chosen, and where texts end.")
    label_tree: LabelTreeConfig = setting_of(LabelTreeConfig, "Proposing groups for a task's labels.")
    prompt_search: PromptSearchConfig = setting_of(PromptSearchConfig, "Judging a task's prompts.")
    study: StudyConfig = setting_of(StudyConfig, "Comparing finished runs.")
    serve: ServeConfig = setting_of(ServeConfig, "Answering over HTTP: where, and with which limits.")
    plan: PlanConfig = setting_of(PlanConfig, "Planning the memory of a training.")
    tune: TuneConfig = setting_of(TuneConfig, "Timing training steps under other settings of the engine.")
    clean: CleanConfig = setting_of(CleanConfig, "Removing from `run.dir` what nobody needs.")
    importer: str | None = setting(None, "What wrote the foreign checkpoint: pai_gpt_moe or megatron_deepspeed.", form="name")
    source: str | None = setting(None, "Directory of the foreign checkpoint.", form="directory")
    import_checkpoint: ImportConfig = setting_of(ImportConfig, "What a foreign checkpoint does not say of itself.")
