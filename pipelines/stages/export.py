"""Stage `export`: an adapted model with everything that answering needs, in one self-describing directory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.checkpoint.hf_directory import INDEX_FILE, is_delta, is_hf_directory, shards_of
from adapt.core.artifacts import METRICS_FILE, README_FILE, Artifact, artifact_at, is_dangling
from adapt.core.errors import ConfigError, DataError, counted
from adapt.core.faults import need_room
from adapt.core.json_files import read_object, write_json
from adapt.core.typed import from_plain, to_plain
from adapt.train.train_config import Trained
from pipelines.config.schema import ExportConfig, ExportForm
from pipelines.stages.contract import Reads, Stage, Workshop, order_of, unkeyed
from pipelines.stages.delivery import Delivery
from pipelines.stages.evaluate import DECISION_FILE, adapted_artifact
from pipelines.stages.export_card import ForTransformers, card
from pipelines.stages.gain import gain_of, in_a_sentence
from pipelines.stages.harness_tasks import write_harness_tasks, write_zero_shot_tasks
from pipelines.stages.models import weights_of
from pipelines.stages.products import Adaptation, Evaluation
from pipelines.stages.rows import TaskData
from pipelines.stages.run import Run
from pipelines.stages.up_to_date import ADAPTED, BASE, EVALUATED, out_of_date
from pseudo_label.decision import Decision, Method
from pseudo_label.harnesses.lm_eval import FOLDER
from pseudo_label.harnesses.zero_shot import data_files
from pseudo_label.labelling import ScoringConfig
from pseudo_label.predictor import PredictorSpec, read_spec, save_spec
from pseudo_label.tasks import TaskConfig
from pseudo_label.teachers import lexical_files

NAME = "export"
_RISE = 0.01  # nats a token, above the noise of a training that changed little
logger = logging.getLogger("pipelines")


@dataclass(frozen=True, kw_only=True)
class ExportReads(Reads):
    """The task, its evaluation, and the model: the adapted one, or the base where nothing was adapted.

    `harness_split` are rows that go into task files for other programs, `zero_shot_data` names data that further ones read.
    """

    data: TaskData
    base: Artifact
    model: Artifact
    evaluate: Artifact
    form: ExportForm
    harness_split: str | None
    zero_shot_data: str | None
    delivery: Delivery | None = unkeyed("where the export is copied to")
    replaced: str | None = unkeyed("what is said of the run's export in another form, which stays in the store")


class Export(Stage[ExportReads]):
    """Export the adapted model (or the base, where nothing was adapted) with the decision that evaluation fitted."""

    name = NAME
    version = 4  # it has the form of transformers too, task files for other programs, and a card with prompts and data

    def reads(self, run: Run, task: TaskConfig | None) -> ExportReads:
        assert task is not None
        base = run.base()
        evaluated = run.require("evaluate", task)
        adapted = adapted_artifact(run, task, base)
        _refuse_stale(task, {EVALUATED: evaluated, BASE: base, **({} if adapted is None else {ADAPTED: adapted})})
        export = run.config.export
        form, split = export.form, export.harness_split
        refuse_form(form, _trained(adapted), weights_of(base))
        refuse_harness(export, weights_of(base))
        return ExportReads(
            data=TaskData.of(run, task, [] if split is None else [split]),
            base=base,
            model=adapted or base,
            evaluate=evaluated,
            form=form,
            harness_split=split,
            zero_shot_data=export.zero_shot_data,
            delivery=Delivery.of(run, task.name),
            replaced=_replaced(run, task, form),
        )

    def build(self, reads: ExportReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        task, evaluated, model = reads.data.task, reads.evaluate, reads.model
        is_base = model.digest == reads.base.digest or not Adaptation.of(model).is_adapted
        said = _write_model(weights_of(reads.base if is_base else model), weights_of(reads.base), reads.form, result, task)
        content = read_object(evaluated.file(DECISION_FILE))
        spec = PredictorSpec(
            task=task,
            scoring=from_plain(ScoringConfig, content["scoring"], str(evaluated.path)),
            decision=from_plain(Decision, content["decision"], str(evaluated.path)),
        )
        save_spec(result, spec)
        if spec.decision.needs_lexical:
            lexical_files.copy(evaluated.path, result)
        if reads.harness_split is not None:
            write_harness_tasks(result, spec, reads.data, reads.harness_split)
        if reads.zero_shot_data is not None:
            write_zero_shot_tasks(result, reads.zero_shot_data)
        shutil.copyfile(evaluated.file(METRICS_FILE), result / METRICS_FILE)
        provenance = {
            "task": task.name,
            "base": reads.base.digest,
            "model": model.digest,
            "model_stage": model.stage,
            "model_config": model.config,
            "evaluate": evaluated.digest,
        }
        write_json(result / "provenance.json", provenance)
        gain = None if is_base else in_a_sentence(gain_of(model, evaluated))
        text = card(spec, Evaluation.of(evaluated).table, gain, reads.base, model, _for_transformers(reads, result))
        (result / README_FILE).write_text(text, encoding="utf-8")
        size = sum(p.stat().st_size for p in result.rglob("*") if p.is_file())
        return {"task": task.name, "bytes": size, "method": spec.decision.method.value, **({} if said is None else {"delta": said})}

    def describe(self, artifact: Artifact) -> str:
        metrics = artifact.metrics
        delta = f", a delta: {metrics['delta']}" if "delta" in metrics else ""
        return f"answers by {metrics['method']}, {metrics['bytes'] / 1e6:.1f} MB{delta}"

    def deliver(self, reads: ExportReads, artifact: Artifact, place: Path) -> None:
        task = reads.data.task.name
        if reads.replaced is not None:
            logger.info("export %s: %s", task, reads.replaced)
        for level, line in _said_of_training(reads, artifact):
            logger.log(level, "export %s: %s", task, line)
        if reads.delivery is not None:
            is_new = reads.delivery.make(artifact)
            said = "written to" if is_new else "unchanged at"
            logger.info("export %s: %s %s", reads.data.task.name, said, reads.delivery.place)


STAGE = Export()


def _replaced(run: Run, task: TaskConfig, form: ExportForm) -> str | None:
    """Return what is to be said where a run has an export in another form; None where it has none."""
    place = run.store.root / run.place(NAME, task)
    found = artifact_at(place) if not is_dangling(place) else None
    before = None if found is None else found.config.get("form", form.value)
    if found is None or before == form.value:
        return None
    return (
        f"{place} was in form {before} and is now in form {form.value}; the other one stays at {found.path} until "
        "`python -m pipelines.clean` removes it; another run.name keeps both"
    )


def _said_of_training(reads: ExportReads, artifact: Artifact) -> Iterator[tuple[int, str]]:
    """Yield what is to be known of an export's training and of how it answers, with the level of the log that it belongs to."""
    made = Adaptation.of(reads.model) if reads.model.digest != reads.base.digest else None
    if made is not None and made.is_adapted:
        losses = {name: found.token_losses for name, found in made.held_out.items()}
        said = ", ".join(f"{name} {before:.3f} -> {after:.3f}" for name, (before, after) in losses.items())
        gain = gain_of(reads.model, reads.evaluate)[0].text
        said = f"last loss {made.loss:.3f}, held-out loss per token {said or 'unknown'}; {gain}"
        yield logging.INFO, f"adapted in {counted(made.steps, 'step')}, {said}"
        risen = [name for name, (before, after) in losses.items() if after > before + _RISE]
        if risen:
            advice = "lower continue_pretrain.optimizer.lr or continue_pretrain.epochs, and adapt anew with another run.name"
            yield logging.WARNING, f"training raised the held-out loss of {', '.join(risen)}: {advice}"
    decision = read_spec(artifact.path).decision
    if decision.method is Method.COMBINED:
        weight = f"{decision.lexical_weight:g}"
        yield logging.INFO, f"answers count the lexical labeller with weight {weight}, the model with weight 1"


def refuse_form(form: ExportForm, trains: Trained | None, base: Path | None = None) -> None:
    """Raise ConfigError where an export cannot have its form.

    It is no delta where what was or will be trained changes all of a model, or the base is an own one or a delta itself. `trains`
    is None where nothing was adapted. Transformers' form needs a router whose rule is in the code that goes with it.
    """
    if form is ExportForm.HUGGING_FACE and base is not None and not is_hf_directory(base):
        from adapt.checkpoint.own_form import refuse_unknown_router  # these import torch
        from adapt.checkpoint.weights import load_config

        refuse_unknown_router(load_config(base))
    if form is not ExportForm.DELTA:
        return
    if trains is Trained.ALL:
        raise ConfigError(
            "export.form=delta: continue_pretrain.trains=all changes every tensor, so a delta would be as large as the model; use "
            "export.form=merged, or adapt anew with continue_pretrain.trains=lora (or experts, router, head) and another run.name"
        )
    if trains is not None and base is not None and is_delta(base):
        raise ConfigError(f"export.form=delta: the base {base} is a delta itself; merge it first (export.form=merged)")
    if base is not None and not is_hf_directory(base):
        raise ConfigError(f"export.form=delta: is for Hugging Face bases, and {base} is none; use export.form=merged")


def refuse_harness(export: ExportConfig, base: Path | None) -> None:
    """Raise ConfigError where other programs could not open an export for which they are to get task files."""
    for key, value in (("harness_split", export.harness_split), ("zero_shot_data", export.zero_shot_data)):
        if value is None:
            continue
        if export.form is ExportForm.DELTA:
            raise ConfigError(f"export.{key}: other programs open whole models; use export.form=merged")
        if export.form is ExportForm.MERGED and base is not None and not is_hf_directory(base):
            raise ConfigError(f"export.{key}: other programs open a model of this project with export.form=hugging_face only")
    if export.zero_shot_data is not None:
        data_files(Path(export.zero_shot_data))


def _trained(adapted: Artifact | None) -> Trained | None:
    """Return what an adaptation trained; None where the base stands."""
    if adapted is None or not Adaptation.of(adapted).is_adapted:
        return None
    return Trained(adapted.config["continue_pretrain"]["trains"])


def _write_model(weights: Path, base: Path, form: ExportForm, result: Path, task: TaskConfig) -> str | None:
    """Write a model with its tokenizer: its files, a merged delta, or what changed of its base; return how much changed."""
    from adapt.checkpoint.delta import read_record, write_changed_delta, write_empty_delta  # these import torch
    from adapt.checkpoint.vocabulary import has_tokenizer, tokenizer_of
    from adapt.checkpoint.weights import checkpoint_files, record_sums, write_merged

    if form is ExportForm.HUGGING_FACE and not is_hf_directory(weights):
        _write_for_transformers(weights, result, task)
        return None
    said = None
    if form is ExportForm.DELTA and not is_delta(weights):
        if weights == base:
            write_empty_delta(result, base)
        else:
            n_changed, n_tensors = write_changed_delta(result, base, weights)
            said = f"{n_changed:,} of {n_tensors:,} tensors of its base changed"
    elif form is not ExportForm.DELTA and is_delta(weights):
        sizes = (entry.size for entry in read_record(weights).base_files.values())
        need_room(result, sum(sizes), "the export")
        write_merged(result, weights)
    else:
        files = list(checkpoint_files(weights))
        need_room(result, sum(file.stat().st_size for file in files), "the export")
        for file in files:
            shutil.copyfile(file, result / file.name)
    if has_tokenizer(weights):
        tokenizer_of(weights).save(result)  # with the record of how a Hugging Face base reads texts
    if (result / INDEX_FILE).is_file():
        record_sums(result)  # a base from elsewhere may have none
    if said is not None:
        n_changed_bytes = sum(file.stat().st_size for file in shards_of(result))
        n_base_bytes = sum(file.stat().st_size for file in shards_of(base))
        said += f", {n_changed_bytes / 1e6:,.1f} of {n_base_bytes / 1e6:,.1f} MB"
    return said


def _for_transformers(reads: ExportReads, result: Path) -> ForTransformers | None:
    """Return how transformers opens what was written; None where it does not."""
    has_tasks = (result / FOLDER).is_dir()
    if reads.form is ExportForm.HUGGING_FACE and not is_hf_directory(result):
        from adapt.checkpoint.own_form import family_note  # these import torch
        from adapt.checkpoint.weights import load_config

        return ForTransformers(has_code=True, has_tasks=has_tasks, family=family_note(load_config(result)))
    if is_delta(result) or not is_hf_directory(result):
        return None
    return ForTransformers(has_code=False, has_tasks=has_tasks)


def _write_for_transformers(weights: Path, result: Path, task: TaskConfig) -> None:
    """Write a model of this project as transformers opens it; its tokenizer is compared on the task's words and prompts."""
    from adapt.checkpoint.own_form import family_note, write_own_form  # these import torch
    from adapt.checkpoint.weights import checkpoint_files, load_config

    need_room(result, sum(file.stat().st_size for file in checkpoint_files(weights)), "the export")
    texts = [*task.label_words.values(), *(prompt.template for prompt in task.prompts.values())]
    write_own_form(result, weights, texts)
    logger.info("export %s: in the form of transformers. %s", task.name, family_note(load_config(weights)))


def _refuse_stale(task: TaskConfig, found: Mapping[str, Artifact]) -> None:
    """Raise DataError when the decision was fitted for another version of the task or for other models."""
    evaluated = found[EVALUATED]
    is_same_task = evaluated.config["task"] == to_plain(task) and evaluated.config.get("task_order") == order_of(task)
    if not is_same_task or out_of_date(found, task.name) is not None:
        what = "model" if is_same_task else f"version of task '{task.name}'"
        raise DataError(f"{evaluated.path}: evaluated another {what}; run `python -m pipelines.evaluate` again")
