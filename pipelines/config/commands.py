"""The commands, in the order data flows: what each does, which keys it reads, and two examples of each.

A key in `reads` is a top-level key or a whole section; a dotted one is that key or part of a section only.
"""

from __future__ import annotations

from dataclasses import dataclass

_ALL = ("run", "force")
_TASKS = ("tasks", "task_dir", "data.root", "data.files", "data.encoding", "data.quotes")
_BASE = ("checkpoint", "model.path")
STARTS_RANKS = ("engine.world_size", "engine.threads", "engine.hostfile", "engine.remote_shell", "engine.master_address")
_SCORES = ("scorer", "offload", *STARTS_RANKS)
_TRAINS = ("engine", "offload.optimizer", "offload.moments", "offload.trained_weights", "offload.frozen_weights", "tracker")
_CORPUS = ("data.corpus", "data.domain_field", "data.encoding", "data.quotes")


@dataclass(frozen=True, kw_only=True)
class Command:
    """`python -m pipelines.<name>`: a stage of the pipeline, another command that reads its configuration, or a plain one.

    `reads` is None where the command reads every key, and empty where it has a command line of its own.
    """

    name: str
    says: str
    reads: tuple[str, ...] | None = ()
    examples: tuple[str, ...] = ()
    is_stage: bool = False


def _stage(name: str, says: str, reads: tuple[str, ...], *examples: str) -> Command:
    return Command(name=name, says=says, reads=(*_ALL, *reads), examples=examples, is_stage=True)


COMMANDS = (
    _stage(
        "corpus",
        "Raw text to a cleaned corpus, which data.corpus takes.",
        (*_CORPUS, "corpus", "scorer.precision"),
        "'data.corpus=[/raw/*.gz]' 'corpus.overlap.files=[/clue/*/test.json]'",
        "run.name=news data.corpus=/raw corpus.duplicates.near=false",
    ),
    _stage(
        "tokenizer",
        "General text to a SentencePiece tokenizer.",
        (*_CORPUS, "tokenizer"),
        "'data.corpus=[/corpus/*.txt]' tokenizer.vocab_size=16000",
        "run.name=news data.corpus=/texts/news.jsonl data.domain_field=source",
    ),
    _stage(
        "pretrain",
        "General text and the run's tokenizer to a base model.",
        ("seed", *_CORPUS, "tokenizer.vocab_size", "model", "objective.balance", *_TRAINS, "pretrain"),
        "'data.corpus=[/corpus/*.txt]' model=small pretrain.steps=2000",
        "data.corpus=/news.jsonl model=7m_moe4 model/router=top2",
    ),
    _stage(
        "import_checkpoint",
        "A foreign checkpoint to one that every stage takes as checkpoint=.",
        ("importer", "source", "import_checkpoint"),
        "importer=pai_gpt_moe source=/moe tokenizer=/moe/spm.model",
        "importer=megatron_deepspeed source=/models/gpt",
    ),
    _stage(
        "extend_vocabulary",
        "A base and domain text to the same base with more pieces.",
        (*_BASE, "data.corpus", "data.encoding", "data.quotes", "extend_vocabulary"),
        "checkpoint=runs/base/pretrain data.corpus=/medical.jsonl",
        "data.corpus=/law.txt extend_vocabulary.pieces=500",
    ),
    _stage(
        "distil",
        "A sparse base and unlabeled text to a dense student of it.",
        ("seed", *_BASE, *_CORPUS, *_TRAINS, "distil"),
        "checkpoint=pipelines/demo/base data.corpus=/texts/news.jsonl",
        "checkpoint=/models/mixtral 'data.corpus=[/a.txt]' distil.merge.groups=2",
    ),
    _stage(
        "label_tree",
        "A proposal of how a task's labels fall into groups, to be read by a person.",
        ("seed", *_TASKS, *_BASE, "exclude_eval", *_SCORES, "pseudo_label", "objective.pseudo_label", "label_tree"),
        "task=iflytek checkpoint=runs/base/pretrain label_tree.groups=20",
        "task=csldcp data.root=/data/clue label_tree.source=confusions",
    ),
    _stage(
        "prompt_search",
        "A task's prompts judged without labels, and with them where there are some.",
        ("seed", *_TASKS, *_BASE, "split", "exclude_eval", *_SCORES, "pseudo_label", "objective.pseudo_label", "prompt_search"),
        "task=tnews data.root=/data/clue prompt_search.file=prompts.yaml",
        "task=eprstmt checkpoint=/models/base prompt_search.rows=1000",
    ),
    _stage(
        "pseudo_label",
        "Unlabeled rows and a model to scored, selected labels.",
        (
            "seed",
            *_TASKS,
            *_BASE,
            "exclude_eval",
            *_SCORES,
            "objective.pseudo_label",
            "pseudo_label",
            "evaluate.criteria",
            "tracker",
        ),
        "task=tnews data.root=/data/clue checkpoint=runs/base/pretrain",
        "task=eprstmt pseudo_label.selection.share=0.3",
    ),
    _stage(
        "continue_pretrain",
        "A base and its selected rows to a model adapted to a task.",
        (
            "seed",
            *_TASKS,
            *_BASE,
            "exclude_eval",
            "data.corpus",
            "data.domain_field",
            "objective",
            *_TRAINS,
            "pretrain.held_out_share",
            "pseudo_label.rounds",
            "continue_pretrain",
            "gate",
        ),
        "task=tnews data.root=/data/clue continue_pretrain.epochs=3",
        "task=tnews objective=mlm continue_pretrain.optimizer.lr=1e-3",
    ),
    _stage(
        "evaluate",
        "Accuracy of base and adapted model, and predictions for splits without labels.",
        (
            "seed",
            *_TASKS,
            *_BASE,
            "split",
            "exclude_eval",
            *_SCORES,
            "objective.pseudo_label",
            "pseudo_label.prompts",
            "evaluate",
            "tracker",
        ),
        "task=eprstmt data.root=/data/clue checkpoint=runs/base/pretrain",
        "task=tnews split=dev evaluate.criteria=[sum,mean,pmi]",
    ),
    _stage(
        "export",
        "An adapted model with all that answering needs, in one directory.",
        ("seed", *_TASKS, *_BASE, "export", "tracker"),
        "task=tnews run.name=news export.output=/models/tnews",
        "tasks=[tnews,eprstmt] run.name=both force=true",
    ),
    _stage(
        "predict",
        "A file of rows to the same rows with labels, by an export.",
        (*_TASKS, *_BASE, "input", "output", *_SCORES, "predict"),
        "checkpoint=runs/news/export/tnews input=rows.csv output=labelled.csv",
        "checkpoint=/exports/tnews input=- output=- scorer.precision=fp32",
    ),
    _stage(
        "report",
        "A run's results, or several runs beside each other, to one HTML page.",
        ("seed", *_TASKS, "runs", "baseline", "output", "exclude_eval"),
        "run.name=news tasks=[tnews] data.root=/data/clue",
        "'runs=[news,news_long,sweep]' baseline=news",
    ),
    Command(
        name="run",
        says="All stages of `stages`, in order.",
        reads=None,
        examples=("experiment=demo", "task=tnews data.root=/data/clue checkpoint=/models/base engine=gpu"),
    ),
    Command(
        name="plan",
        says="Parameters of a model and memory per rank, without allocating anything.",
        reads=(
            "model",
            "tokenizer.vocab_size",
            "engine",
            "offload.optimizer",
            "offload.moments",
            "pretrain.batch_rows",
            "pretrain.optimizer.algorithm",
            "continue_pretrain.batch_rows",
            "continue_pretrain.optimizer.algorithm",
            "offload.trained_weights",
            "offload.frozen_weights",
            "continue_pretrain.trains",
            "continue_pretrain.lora",
            "plan",
        ),
        examples=("model=16b_pyramid engine=node8 engine.precision=bf16 plan.device=cuda", "model=small model/router=top2"),
    ),
    Command(
        name="tune",
        says="Settings of a training step tried in short runs, and the fastest that fit.",
        reads=(
            "run.dir",
            "seed",
            "output",
            "checkpoint",
            "model",
            "tokenizer.vocab_size",
            "objective.balance",
            "engine",
            "offload.optimizer",
            "offload.moments",
            "offload.trained_weights",
            "offload.frozen_weights",
            "pretrain.optimizer",
            "continue_pretrain.optimizer",
            "continue_pretrain.trains",
            "continue_pretrain.lora",
            "tune",
        ),
        examples=(
            "model=small engine.world_size=2",
            "checkpoint=/models/base engine.memory_gb=8 output=tuned.json",
        ),
    ),
    Command(
        name="study",
        says="Finished runs to tables of accuracies with paired differences.",
        reads=("run.dir", "tasks", "output", "study"),
        examples=("'study.runs=[news_*]' study.baseline=base", "run.dir=/data/runs 'study.runs=[a,b]' output=study.md"),
    ),
    Command(
        name="clean",
        says="What no run needs below run.dir, shown first, removed with clean.remove=true.",
        reads=("run.dir", "clean"),
        examples=("run.dir=/data/runs", "clean.remove=true clean.kinds=[unlinked,litter] clean.older_than_days=7"),
    ),
    Command(
        name="serve",
        says="An export that answers over HTTP: labels in JSON, and a page.",
        reads=("checkpoint", "model.path", "scorer", "offload", "serve"),
        examples=("checkpoint=runs/news/export/tnews", "checkpoint=/exports/tnews serve.port=0 scorer.precision=fp32"),
    ),
    Command(
        name="generate",
        says="Prompts to texts that go on, by any model that this project opens.",
        reads=(
            "run",
            "seed",
            "checkpoint",
            "model.path",
            "input",
            "output",
            "data.encoding",
            "data.quotes",
            "scorer.precision",
            "offload",
            "generate",
        ),
        examples=(
            "checkpoint=pipelines/demo/base prompt=今天天气",
            "checkpoint=/models/base input=prompts.txt output=texts.jsonl",
        ),
    ),
    Command(
        name="random_checkpoint",
        says="An untrained model of any size as a checkpoint, for measuring speed.",
        reads=("run", "seed", "force", "output", "model", "tokenizer.vocab_size", "pretrain.save_precision"),
        examples=("model=1.3b_moe32 output=/scratch/random", "model=tiny output=/tmp/tiny"),
    ),
    Command(name="watch", says="What runs now: stage, step, losses, time left, experts, memory."),
    Command(name="init", says="A table to a task that runs: its file, its rows, and the commands that go on."),
    Command(name="tokenizer_doctor", says="What a tokenizer does to texts and label words, and what to change."),
    Command(name="verify", says="A checkpoint's logits compared with a reference."),
    Command(name="import_gguf", says="A GGUF file to a Hugging Face directory that works as a base."),
    Command(name="upcycle", says="A dense checkpoint to a sparse one with the same answers."),
    Command(name="record_sums", says="Sums of a checkpoint's files, against which it is verified later."),
    Command(name="swap", says="Swap space on NVMe drives: plan, apply, undo."),
    Command(name="bench", says="Benchmarks against named baselines."),
    Command(name="gpu_check", says="What wants a GPU: correctness against the CPU, then benchmarks."),
    Command(name="settings_page", says="The reference of all settings, docs/settings.md."),
    Command(name="machines_page", says="Which model trains on which machine, docs/machines.md."),
)
STAGES = tuple(command.name for command in COMMANDS if command.is_stage)
