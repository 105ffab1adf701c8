"""Checks of what a walk's stages need, made before the first of them builds: a long run must not end in a late refusal.

There is one function per concern, the cheap ones first: settings, then data, then what needs the model or the base. Each checks
for the stages of this walk only. Nothing is written, and stages keep their own checks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from adapt.checkpoint.hf_directory import CONFIG_FILE, is_hf_directory
from adapt.core.errors import ConfigError
from adapt.core.json_files import read_object
from adapt.core.spans import LabelLoss
from adapt.model.config import HFConfig
from adapt.train.engine_config import check_optimizer
from pipelines.config.adapt_settings import MomentsStart
from pipelines.config.commands import COMMANDS
from pipelines.config.schema import PipelineConfig
from pipelines.stages.delivery import check_deliveries
from pipelines.stages.models import open_model_artifact, weights_of
from pipelines.stages.rows import UNLABELED, TaskData
from pipelines.stages.run import Run
from pipelines.stages.scoring_choice import chosen_prompts
from pipelines.walk.ahead import Ahead
from pipelines.walk.preflight_files import (
    check_file_names,
    check_input,
    check_lexical,
    check_other_tasks,
    check_output,
    check_rows,
)
from pseudo_label.adaptation_data import refuse_unreadable
from pseudo_label.criteria.contract import get_criterion
from pseudo_label.decision import Method
from pseudo_label.labelling import ScoringConfig
from pseudo_label.prompts import Prompt, parse_template
from pseudo_label.task_checks import unread_fields
from pseudo_label.tasks import TaskConfig
from pseudo_label.teachers.file import read_label_file

_METHOD = "evaluate.method"
_OF_THE_COMMAND = {"stages", "sweep", "baseline"}  # what the walk and a sweep read, and no stage
_LABELLING = ("label_tree", "pseudo_label")
_ON_A_BASE = ("distil", "label_tree", "prompt_search", "pseudo_label", "continue_pretrain", "evaluate", "export")

logger = logging.getLogger("pipelines")


def check_ahead(run: Run, stages: list[str], tasks: list[TaskConfig], given: frozenset[str]) -> None:
    """Refuse now what a later stage of this walk would refuse.

    Raises:
        AdaptError: the same error that the stage would raise.
    """
    ahead = Ahead(run=run, stages=stages, tasks=tasks, given=given)
    for check in CHECKS:
        check(ahead)


def check_keys(ahead: Ahead) -> None:
    """Keys that were given and that no stage of this walk reads are said."""
    reads = [key for command in COMMANDS if command.name in ahead.stages for key in command.reads or ()]
    sections = {one.name for one in fields(PipelineConfig)} - _OF_THE_COMMAND
    unread = [
        key
        for key in sorted(name.replace("/", ".") for name in ahead.given)
        if key.partition(".")[0] in sections
        and not any(f"{key}.".startswith(f"{read}.") or f"{read}.".startswith(f"{key}.") for read in reads)
    ]
    if unread:
        stages = ", ".join(ahead.stages)
        logger.warning("%s: not read by %s; `python -m pipelines.<stage> --help` lists a stage's keys", ", ".join(unread), stages)


def check_criteria(ahead: Ahead) -> None:
    """Criteria that are named exist."""
    config = ahead.config
    named: list[tuple[str, str | None]] = []
    if ahead.has(*_LABELLING):
        named.append(("pseudo_label.criterion", config.pseudo_label.criterion))
    if ahead.has("evaluate"):
        named.append(("evaluate.criterion", config.evaluate.criterion))
        named += [("evaluate.criteria", name) for name in config.evaluate.criteria]
    for task in ahead.tasks:
        named += [(f"task '{task.name}', prompts.{name}.criterion", prompt.criterion) for name, prompt in task.prompts.items()]
    for where, criterion in named:
        if criterion is not None:
            try:
                get_criterion(criterion)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error


def check_prompts(ahead: Ahead) -> None:
    """Prompts that are named exist, can be read, and have their label where training wants it."""
    for task in ahead.tasks:
        for name in task.prompts:
            parse_template(task, name)
        if unread := unread_fields(task):
            fields = ", ".join(unread)
            logger.warning("task '%s': no prompt reads %s; only rules and the lexical labeller may use it", task.name, fields)
        if ahead.has(*_LABELLING, "evaluate"):
            chosen_prompts(ahead.config.pseudo_label.prompts, task)
        if ahead.has("continue_pretrain"):
            reading = ahead.config.continue_pretrain
            name = reading.prompt or task.reference
            if name not in task.prompts:
                there = ", ".join(task.prompts)
                raise ConfigError(f"continue_pretrain.prompt: task '{task.name}' has no prompt '{name}'; it has: {there}")
            refuse_unreadable(task, name, ahead.config.objective.pseudo_label, reading)


def check_groups(ahead: Ahead) -> None:
    """A Hugging Face base has, by its family, what is to be trained; its weights are not looked at."""
    from pipelines.stages.adaptation_checks import refuse_missing_groups

    model, given = ahead.config.model, ahead.config.checkpoint
    place = Path(given) if given is not None else Path(model.path) if isinstance(model, HFConfig) else None
    if ahead.has("continue_pretrain") and place is not None and is_hf_directory(place):
        model_type = str(read_object(place / CONFIG_FILE)["model_type"])
        refuse_missing_groups(model_type, ahead.config.continue_pretrain, place)


def check_chat(ahead: Ahead) -> None:
    """Prompts in the turns of a conversation have a base that can have a chat template."""
    if not (ahead.asks_model_to_label or ahead.has("continue_pretrain", "evaluate")) or not ahead.makes_its_base:
        return
    for task in ahead.tasks:
        for name in _used_prompts(ahead, task):
            if task.prompts[name].chat:
                raise ConfigError(
                    f"task '{task.name}', prompts.{name}.chat: needs an instruction-tuned Hugging Face base, and this walk "
                    "pretrains its own; leave chat out, or give model=hf model.path=DIR"
                )


def check_joint_tasks(ahead: Ahead) -> None:
    """Tasks that are adapted together are tasks of the run."""
    from pipelines.stages.continue_pretrain import check_joint

    if ahead.has("continue_pretrain"):
        check_joint(ahead.config)


def check_proposals(ahead: Ahead) -> None:
    """A label tree and a search for prompts can be made as they are asked for."""
    from pipelines.stages.label_tree import group_sizes

    for task in ahead.tasks:
        if ahead.has("label_tree"):
            group_sizes(ahead.config.label_tree, task)
        if ahead.has("prompt_search"):
            from pipelines.stages.prompt_search import judged_task  # imports what draws charts

            judged_task(task, ahead.config.prompt_search)


def check_teachers(ahead: Ahead) -> None:
    """Teachers that label suit the tasks, and what they read is there."""
    from pipelines.stages.teacher_panel import check_encoder, check_teachers, teacher_file

    settings = ahead.config.pseudo_label
    if not ahead.has("pseudo_label"):
        return
    check_encoder(settings)
    file = teacher_file(settings)
    for task in ahead.tasks:
        check_teachers(settings, task)
        if file is not None:
            data = TaskData.of(ahead.run, task, [UNLABELED])
            read_label_file(file, task).fitted((), data.iterate(UNLABELED) if data.existing([UNLABELED]) else ())


def check_optimizers(ahead: Ahead) -> None:
    """Engine and optimizers go together."""
    config = ahead.config
    optimizers = {
        "pretrain": config.pretrain.optimizer,
        "distil": config.distil.optimizer,
        "continue_pretrain": config.continue_pretrain.optimizer,
    }
    for stage, optimizer in optimizers.items():
        if ahead.has(stage):
            try:
                check_optimizer(config.engine, optimizer, config.offload)
            except ConfigError as error:
                raise ConfigError(f"{stage}.{error}") from error


def check_corpus(ahead: Ahead) -> None:
    """Corpus files are there and have the domains that are repeated; what needs general text has some."""
    from adapt.text.corpus import find_corpus
    from pipelines.stages.forgetting import refuse_needed
    from pipelines.stages.pretrain import check_repeats

    data = ahead.config.data
    if ahead.has("corpus") and len(ahead.stages) > 1:
        place = ahead.run.directory / "corpus"
        raise ConfigError(
            f"stages: corpus makes what the others read as data.corpus; run `python -m pipelines.corpus` by itself, "
            f"then the others with data.corpus={place}"
        )
    if ahead.has("continue_pretrain") and not data.corpus:
        refuse_needed(ahead.config, is_foreign=ahead.has_foreign_base)
    if ahead.has("tokenizer", "pretrain", "distil") or (ahead.has("continue_pretrain") and data.corpus):
        files = find_corpus(data.corpus, data.domain_field, data.encoding, data.quotes)
        if ahead.has("pretrain") and data.domain_field is None:  # else the lines say their domains, and there may be many lines
            check_repeats(ahead.config.pretrain.repeats or {}, sorted({file.domain for file in files}))


def check_own_model(ahead: Ahead) -> None:
    """The model to be pretrained can be made, fits, and has the vocabulary of the tokenizer that will be trained."""
    from pipelines.stages.pretrain import check_model

    if not ahead.has("pretrain"):
        return
    model, vocab_size = ahead.run.own_model(), ahead.config.tokenizer.vocab_size
    check_model(model, ahead.config.pretrain, ahead.run.quiet_engine, ahead.config.offload)
    if ahead.has("tokenizer") and model.vocab_size != vocab_size:
        raise ConfigError(f"model.vocab_size: is {model.vocab_size}, and tokenizer.vocab_size is {vocab_size}; give both the same")


def check_earlier_stages(ahead: Ahead) -> None:
    """What this walk does not make itself was made by an earlier command, and is whole."""
    run = ahead.run
    if ahead.has("pretrain") and not ahead.has("tokenizer"):
        run.require("tokenizer")
    if ahead.has(*_ON_A_BASE) and not ahead.makes_its_base:
        run.base()
    for stage, earlier in {"continue_pretrain": "pseudo_label", "export": "evaluate", "predict": "export"}.items():
        if ahead.has(stage) and not ahead.has(earlier) and not (stage == "predict" and ahead.predicts_directly):
            for task in ahead.tasks:
                run.require(earlier, task)
    if ahead.has("evaluate", "export") and not ahead.has("continue_pretrain"):
        from pipelines.stages.evaluate import adapted_artifact

        for task in ahead.tasks:
            if ahead.makes_its_base:
                run.find("continue_pretrain", task)
            else:
                adapted_artifact(run, task, run.base())


def check_adaptation(ahead: Ahead) -> None:
    """The base has what is to be trained, what training starts from, and room for it."""
    from pipelines.stages.adaptation_checks import check_own_training, check_training, moments_of

    if not ahead.has("continue_pretrain"):
        return
    settings, engine, offload = ahead.config.continue_pretrain, ahead.run.quiet_engine, ahead.config.offload
    if not ahead.makes_its_base:
        moments_of(ahead.run.base(), settings)
        check_training(ahead.run.base(), settings, engine, offload)
        return
    if settings.moments is MomentsStart.KEEP and not ahead.config.pretrain.keeps_moments:
        raise ConfigError(
            "continue_pretrain.moments=keep: this walk's base will have no optimizer moments; set pretrain.keeps_moments=true, or "
            "use continue_pretrain.moments=fresh"
        )
    check_own_training(ahead.run.own_model(), settings, engine, offload)


def check_export(ahead: Ahead) -> None:
    """An export holds only changes where only changes will be made; the place of one's own that it is copied to can take it."""
    from pipelines.stages.export import refuse_form, refuse_harness

    check_deliveries(ahead.run, ahead.tasks if ahead.has("export") else ())
    if ahead.has("export"):
        refuse_harness(ahead.config.export, None)
    if ahead.has("export") and ahead.has("continue_pretrain"):
        base = None if ahead.makes_its_base else weights_of(ahead.run.base())
        refuse_form(ahead.config.export.form, ahead.config.continue_pretrain.trains, base)


def check_method(ahead: Ahead) -> None:
    """A method that is asked for when exporting or predicting is the one that the evaluation decided by, which an export keeps."""
    from pseudo_label.predictor import read_spec

    wanted = ahead.config.evaluate.method.value
    if not ahead.has("export", "predict") or ahead.has("evaluate") or _METHOD not in ahead.given:
        return
    if ahead.predicts_directly:
        place = str(ahead.config.checkpoint)
        decided = {place: read_spec(open_model_artifact(Path(place)).path).decision.method.value}
    else:
        decided = {task.name: str(ahead.run.require("evaluate", task).config["evaluate"]["method"]) for task in ahead.tasks}
    for name, method in decided.items():
        if method != wanted:
            raise ConfigError(
                f"{_METHOD}={wanted}: the evaluation of '{name}' decided by {method}, and an export answers as it did; run "
                f"`python -m pipelines.evaluate` with {_METHOD}={wanted} first and export anew, or leave it out"
            )


def check_words(ahead: Ahead) -> None:
    """The base's tokenizer knows the tasks' words and tells them apart, and has a mask where labels are masked."""
    if not (ahead.asks_model_to_label or ahead.has("continue_pretrain", "evaluate")) or ahead.makes_its_base:
        return
    from adapt.checkpoint.vocabulary import tokenizer_of

    place, loss = weights_of(ahead.run.base()), ahead.config.objective.pseudo_label
    tokenizer = tokenizer_of(place)
    for task in ahead.tasks:
        for name in _used_prompts(ahead, task):
            Prompt(task, name, tokenizer, context_length=0)  # no row is rendered
    if tokenizer.whole is not None:
        logger.info("base: documents start with %s, prompts are encoded as one text", tokenizer.pieces([tokenizer.bos_id])[0])
    if ahead.has("continue_pretrain") and loss in (LabelLoss.MLM, LabelLoss.BOTH) and tokenizer.mask_id is None:
        raise ConfigError(
            f"objective.pseudo_label={loss.value}: masked labels need a <mask> token, and the tokenizer of {place} has none; use "
            "objective.pseudo_label=clm"
        )


def _used_prompts(ahead: Ahead, task: TaskConfig) -> list[str]:
    """Return the prompts that rows of a task are scored or trained with."""
    config = ahead.config
    names = [task.reference]
    is_ensemble = bool({Method.ENSEMBLE, Method.COMBINED} & {*config.evaluate.methods, config.evaluate.method})
    if ahead.asks_model_to_label or (ahead.has("evaluate") and is_ensemble):
        names += ScoringConfig(prompts=config.pseudo_label.prompts).names(task)
    if ahead.has("continue_pretrain") and config.continue_pretrain.prompt is not None:
        names.append(config.continue_pretrain.prompt)
    return list(dict.fromkeys(names))


CHECKS: tuple[Callable[[Ahead], None], ...] = (
    check_keys,
    check_groups,
    check_criteria,
    check_prompts,
    check_chat,
    check_joint_tasks,
    check_proposals,
    check_teachers,
    check_optimizers,
    check_export,
    check_corpus,
    check_file_names,
    check_rows,
    check_lexical,
    check_other_tasks,
    check_output,
    check_input,
    check_own_model,
    check_earlier_stages,
    check_method,
    check_adaptation,
    check_words,
)
