"""Which of a run's results on a task belong together: none is shown beside another than it was made of.

A stage that is run again with other settings leaves what later stages made of its earlier result where it is. Artifacts of one task
flow in by stage; what is out of date flows out, with the stages to run again. Pages, tables, verdicts, trackers, comparisons,
`export` and `predict` all ask here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapt.core.artifacts import Artifact
from pipelines.stages.run import Run, again_command

BASE, LABELS, ADAPTED, EVALUATED, EXPORTED = "base", "pseudo_label", "continue_pretrain", "evaluate", "export"
CHAIN = (LABELS, ADAPTED, EVALUATED, EXPORTED)  # in the order in which they are made


@dataclass(frozen=True, kw_only=True)
class OutOfDate:
    """Why results of a task do not belong together; the first of the stages `again` is the one to run first.

    `older` is the first stage whose result is not of the others'; results of later stages were made of it.
    """

    why: str
    older: str
    again: tuple[str, ...]

    @property
    def stages(self) -> str:
        """The stages to run again, in words."""
        return ", then ".join(self.again)

    def commands(self, run_name: str, task: str) -> str:
        """Return the commands that bring all up to date, in words."""
        return ", then ".join(f"`{again_command(stage, run_name, task)}`" for stage in self.again)


def out_of_date(found: Mapping[str, Artifact], task: str) -> OutOfDate | None:
    """Return what is out of date among the results of a task by stage; None where all belong together.

    Under `base` may be the model that they are to start from. Stages that are not given are not asked about.
    """
    labels, adapted, evaluated, exported = (found.get(stage) for stage in CHAIN)
    if adapted is not None and labels is not None and labels_digest(adapted, task) not in (None, labels.digest):
        again = tuple(stage for stage in (ADAPTED, EVALUATED) if stage in found)
        return OutOfDate(why=f"{ADAPTED} is of other labels than {LABELS}", older=ADAPTED, again=again)
    if evaluated is not None and _input(evaluated, ADAPTED) != (None if adapted is None else adapted.digest):
        is_of_other_base = (
            adapted is not None and _input(evaluated, ADAPTED) is None and _input(evaluated, BASE) != _input(adapted, BASE)
        )
        again = (LABELS, ADAPTED, EVALUATED) if is_of_other_base else (EVALUATED,)
        return OutOfDate(why=f"{EVALUATED} is of another adapted model than {ADAPTED}", older=EVALUATED, again=again)
    if evaluated is not None and adapted is None and labels is not None and _input(evaluated, BASE) != _input(labels, BASE):
        return OutOfDate(why=f"{EVALUATED} is of another base than {LABELS}", older=EVALUATED, again=(LABELS, EVALUATED))
    if evaluated is not None and BASE in found and _input(evaluated, BASE) != found[BASE].digest:
        return OutOfDate(why=f"{EVALUATED} is of another base", older=EVALUATED, again=(EVALUATED,))
    if exported is not None and evaluated is not None and _input(exported, EVALUATED) not in (None, evaluated.digest):
        return OutOfDate(why=f"{EXPORTED} is older than {EVALUATED}", older=EXPORTED, again=(EXPORTED,))
    return None


def belonging(current: Run, task: str, stages: Sequence[str] = CHAIN) -> tuple[dict[str, Artifact], str]:
    """Return what a run has of a task by stage, without what is out of date; and a line that says what was left out, or nothing.

    Raises:
        CheckpointError: an artifact is damaged.
    """
    found = {stage: artifact for stage in stages if (artifact := current.linked(stage, task)) is not None}
    return of_each_other(found, current.name, task)


def of_each_other(found: Mapping[str, Artifact], run_name: str, task: str) -> tuple[dict[str, Artifact], str]:
    """Return the results of a task by stage without what is out of date, and a line that says what was left out, or nothing."""
    old = out_of_date(found, task)
    if old is None:
        return dict(found), ""
    left_out = [stage for stage in CHAIN[CHAIN.index(old.older) :] if stage in found]
    said = f"{task}: {old.why}; left out here: {', '.join(left_out)}; run {old.commands(run_name, task)} again"
    return {stage: artifact for stage, artifact in found.items() if stage not in left_out}, said


def older_export(current: Run, task: str) -> str:
    """Return a line where a task's export is older than the training or the evaluation that is there; else nothing."""
    found = {stage: artifact for stage in CHAIN[1:] if (artifact := current.linked(stage, task)) is not None}
    exported, adapted, evaluated = found.get(EXPORTED), found.get(ADAPTED), found.get(EVALUATED)
    if exported is None:
        return ""
    said = f"{EXPORTED}: {current.directory / EXPORTED / task} is older than this"
    if adapted is not None and evaluated is not None and out_of_date({ADAPTED: adapted, EVALUATED: evaluated}, task) is not None:
        return f"{said} training; run `python -m pipelines.{EVALUATED}` and `python -m pipelines.{EXPORTED}` for a new one"
    if evaluated is not None and _input(exported, EVALUATED) not in (None, evaluated.digest):
        return f"{said} evaluation; run `python -m pipelines.{EXPORTED}` for a new one"
    return ""


def labels_digest(adapted: Artifact, task: str) -> str | None:
    """Return the digest of the labels of a task that an adaptation was made with; None where it does not say."""
    return _input(adapted, f"{LABELS} {task}") or _input(adapted, LABELS)


def _input(artifact: Artifact, name: str) -> str | None:
    used = artifact.inputs.get(name)
    return None if used is None else used.digest
