"""Further rounds of label and adapt: the adapted model labels, the base is adapted anew, until the stop rule says enough."""

from __future__ import annotations

import logging

from pipelines.stages import continue_pretrain, pseudo_label
from pipelines.stages.contract import USED
from pipelines.stages.products import Adaptation, Labels
from pipelines.stages.run import Run
from pseudo_label.store import LABELS_FILE, PseudoLabel, read_labels
from pseudo_label.tasks import TaskConfig

logger = logging.getLogger("pipelines")


def further_rounds(run: Run, task: TaskConfig) -> None:
    """Label and adapt again, from the run's first round on, until `pseudo_label.rounds` says to stop (see `RoundsConfig`)."""
    settings = run.config.pseudo_label.rounds
    for number in range(2, settings.count + 1):
        labels, adapted = run.require(pseudo_label.NAME, task), run.require(continue_pretrain.NAME, task)
        if not Adaptation.of(adapted).is_adapted:
            return
        run.labellers[task.name] = adapted
        again = run.run_stage(pseudo_label.STAGE, task)
        run.store.link(f"{run.name}/{USED}/round_{number}/{pseudo_label.NAME}/{task.name}", again)  # whichever round stands
        changed = _changed(read_labels(labels.file(LABELS_FILE)), read_labels(again.file(LABELS_FILE)))
        worse = _worse(run, Labels.of(labels), Labels.of(again))
        said = f"{task.name}: round {number} changes {100 * changed:.1f} % of the labels"
        if worse is not None:
            run.store.link(run.place(pseudo_label.NAME, task), labels)
            logger.info("%s, but %s: round %d stands", said, worse, number - 1)
            return
        if changed < settings.min_change:
            run.store.link(run.place(pseudo_label.NAME, task), labels)
            logger.info("%s, fewer than %.1f %%: round %d stands", said, 100 * settings.min_change, number - 1)
            return
        logger.info("%s", said)
        run.run_stage(continue_pretrain.STAGE, task)


def _changed(before: list[PseudoLabel], after: list[PseudoLabel]) -> float:
    """Return the share of rows, of those labelled both times, whose label changed."""
    old = {label.text_digest: label.label for label in before}
    common = [label for label in after if label.text_digest in old]
    return sum(label.label != old[label.text_digest] for label in common) / max(len(common), 1)


def _worse(run: Run, before: Labels, after: Labels) -> str | None:
    """Return why a round's labels are worse than those before, or None."""
    limit = run.config.pseudo_label.collapse_limit
    share = after.largest_class_share
    if share > limit:
        return f"one class took {100 * share:.0f} % of the predictions"
    if not after.selected:
        return "nothing was selected"
    old, new = before.disagreement, after.disagreement
    allowed = run.config.pseudo_label.rounds.max_noise_increase
    if old is not None and new is not None and new > old + allowed:
        return f"the prompts' disagreement rose from {100 * old:.1f} to {100 * new:.1f} %"
    return None
