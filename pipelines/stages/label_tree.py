"""Stage `label_tree`: a proposal for how a task's labels fall into groups, to be read by a person.

`python -m pipelines.label_tree task=NAME label_tree.source=embeddings|confusions label_tree.groups=N` needs a model (the run's
base, or `checkpoint=`). It prints a `label_tree:` ready for the task's file; nothing reads it until somebody puts it there.

`embeddings` reads no data: a label's vector is the mean, over its word's tokens, of the model's final hidden states, with the word
in its place in the reference prompt and the fields empty. Hidden states, not input embeddings: they know the order of a word's
tokens and the prompt before them, and every base gives them. What all labels share (the prompt, mostly) is taken off, then cosines
are compared.

`confusions` scores `label_tree.rows` unlabeled rows and correlates the labels' scores over them, standardised and averaged over
the prompts as the ensemble does it. With `label_tree.labelled_weight` over 0, that share of the likeness is how often dev and few
rows of one label are taken for the other: accuracy on these rows says less afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.artifacts import Artifact
from adapt.core.errors import ConfigError, DataError, shown
from adapt.core.scorer import FloatArray
from adapt.core.spans import Span
from pipelines.config.schema import LabelTreeConfig
from pipelines.stages.contract import Reads, Stage, Workshop
from pipelines.stages.models import weights_of
from pipelines.stages.rows import LABELLED_SPLITS, UNLABELED, TaskData, adaptation_rows, labelled_rows
from pipelines.stages.run import Run
from pipelines.stages.scores import ScorerReads, scores_of
from pipelines.stages.scoring_choice import label_form, scoring_of
from pseudo_label.decision import Method, fit_decision
from pseudo_label.label_tree import (
    GroupSizes,
    TreeSource,
    adjusted_rand_index,
    group_labels,
    likeness_of_mistakes,
    likeness_of_scores,
    likeness_of_vectors,
    mean_likeness,
    name_groups,
    tree_yaml,
)
from pseudo_label.labelling import ScoringConfig
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskConfig, TaskRow

NAME = "label_tree"
TREE_FILE = "label_tree.yaml"


@dataclass(frozen=True, kw_only=True)
class LabelTreeReads(Reads):
    """The base and the task; rows, and how they are scored, only for `confusions`."""

    data: TaskData
    label_tree: LabelTreeConfig
    scoring: ScoringConfig | None
    scorer: ScorerReads
    base: Artifact


class LabelTree(Stage[LabelTreeReads]):
    """Propose a tree for a task's labels."""

    name = NAME
    version = 2  # prompts of Hugging Face bases are one text

    def reads(self, run: Run, task: TaskConfig | None) -> LabelTreeReads:
        assert task is not None
        config, settings = run.config, run.config.label_tree
        group_sizes(settings, task)
        reads_rows = settings.source is TreeSource.CONFUSIONS
        scoring = replace(scoring_of(config.pseudo_label, label_form(config), task), with_groups=False)
        return LabelTreeReads(
            data=TaskData.of(run, task, [UNLABELED, *LABELLED_SPLITS] if reads_rows else []),
            label_tree=settings,
            scoring=scoring if reads_rows else None,
            scorer=ScorerReads.of(run),
            base=run.base(),
        )

    def build(self, reads: LabelTreeReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        task, source = reads.data.task, reads.label_tree.source
        likeness_CC = _likeness_of_words(reads) if reads.scoring is None else _likeness_of_scored(shop, reads, reads.scoring)
        groups = group_labels(task.labels, likeness_CC, group_sizes(reads.label_tree, task))
        words = task.prompts[task.reference].label_words or task.label_words
        tree = name_groups(groups, task.labels, likeness_CC, words)
        comment = f"Proposed by pipelines.label_tree for {task.name} from {source.value}; model {reads.base.digest[:16]}."
        (result / TREE_FILE).write_text(tree_yaml(tree, comment), encoding="utf-8")
        inside, between = mean_likeness(groups, task.labels, likeness_CC)
        found = {"sizes": {word: len(labels) for word, labels in tree.items()}, "inside": inside, "between": between}
        if task.label_tree is not None:
            known = list(task.label_tree.values())
            found["known"] = {"groups": len(known), "adjusted_rand_index": adjusted_rand_index(groups, known)}
        return found

    def describe(self, artifact: Artifact) -> str:
        m = artifact.metrics
        return f"{sum(m['sizes'].values())} labels in {len(m['sizes'])} groups (a proposal)"

    def deliver(self, reads: LabelTreeReads, artifact: Artifact, place: Path) -> None:
        told = artifact.file(TREE_FILE).read_text(encoding="utf-8") + _summary(reads.data.task, artifact)
        sys.stdout.write(shown(told, kept="\n"))
        sys.stdout.flush()


STAGE = LabelTree()


def group_sizes(settings: LabelTreeConfig, task: TaskConfig) -> GroupSizes:
    """Return how many groups of what size are asked for. Raises ConfigError for settings that no tree can have."""
    if task.candidates is not None:
        raise ConfigError(f"task '{task.name}': its rows bring their own candidates, so it has no labels to group; leave it out")
    known = len(task.label_tree) if task.label_tree is not None else round(len(task.labels) ** 0.5)
    sizes = GroupSizes(
        groups=max(known, 2) if settings.groups is None else settings.groups, least=settings.min_size, most=settings.max_size
    )
    sizes.check(len(task.labels), f"task '{task.name}'")
    if settings.labelled_weight and settings.source is TreeSource.EMBEDDINGS:
        raise ConfigError("label_tree.labelled_weight: embeddings read no rows; set label_tree.source=confusions")
    return sizes


def _likeness_of_words(reads: LabelTreeReads) -> FloatArray:
    """Compare the labels' words as the model reads them in the reference prompt."""
    import torch

    from adapt.checkpoint.open_checkpoint import open_checkpoint
    from adapt.model.inputs import ModelInputs

    task = reads.data.task
    opened = open_checkpoint(weights_of(reads.base), reads.scorer.scorer, reads.scorer.offload)
    prompt = Prompt(task, task.reference, opened.tokenizer, opened.model.context_length)
    empty = prompt.null_row(TaskRow(id=None, texts=dict.fromkeys(task.fields, ""), label=None, candidates=None, line=0))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vectors = []
    for label in task.labels:
        text = prompt.labelled(empty, label)
        ids_BT = torch.from_numpy(text.ids_T)[None]
        inputs = ModelInputs(
            ids_BT=ids_BT,
            positions_BT=torch.arange(len(text))[None],
            documents_BT=torch.ones_like(ids_BT),
            domains_BT=torch.full_like(ids_BT, text.domain),
            is_packed=False,
        )
        with torch.inference_mode():
            hidden_TH = opened.model(inputs.to(device)).hidden_BTH[0].double().cpu().numpy()
        vectors.append(hidden_TH[text.kinds_T == int(Span.LABEL)].mean(axis=0))
    return likeness_of_vectors(np.stack(vectors))


def _likeness_of_scored(shop: Workshop, reads: LabelTreeReads, scoring: ScoringConfig) -> FloatArray:
    """Compare the labels' scores over unlabeled rows, and, where asked for, what labelled rows are taken for.

    Raises:
        DataError: there are too few unlabeled rows, or no labelled ones where they are asked for.
    """
    settings, task = reads.label_tree, reads.data.task
    rows = adaptation_rows(shop, reads.data, settings.rows).rows
    if len(rows) < 2:
        raise DataError(
            f"task '{task.name}': has {len(rows)} unlabeled rows to score; use label_tree.source=embeddings, which reads none"
        )
    passes = scoring.passes(task)
    keys = scoring.keys(scores_of(shop, reads.scorer, reads.data, reads.base, UNLABELED, rows, passes).passes, task)
    decision = fit_decision(Method.ENSEMBLE, keys, task)
    likeness_CC = likeness_of_scores(decision.flat_scores(keys))
    if settings.labelled_weight == 0:
        return likeness_CC
    labelled = labelled_rows(shop, reads.data)
    if not labelled:
        raise DataError(f"task '{task.name}': has no labelled rows in dev or few; use label_tree.labelled_weight=0")
    predicted, gold = [], []
    for split, some in labelled.items():
        scored = scores_of(shop, reads.scorer, reads.data, reads.base, split, some, passes)
        predicted += decision.flat_scores(scoring.keys(scored.passes, task)).argmax(axis=1).tolist()
        gold += [task.labels.index(row.label or "") for row in some]
    mistakes_CC = likeness_of_mistakes(np.asarray(predicted), np.asarray(gold), len(task.labels))
    return np.asarray((1 - settings.labelled_weight) * likeness_CC + settings.labelled_weight * mistakes_CC)


def _summary(task: TaskConfig, artifact: Artifact) -> str:
    m = artifact.metrics
    sizes = ", ".join(f"{word} {size}" for word, size in m["sizes"].items())
    lines = [
        f"{task.name}: {len(task.labels)} labels in {len(m['sizes'])} groups: {sizes}",
        f"mean likeness of two labels: {m['inside']:.2f} in one group, {m['between']:.2f} in different ones",
    ]
    if "known" in m:
        agreement = m["known"]["adjusted_rand_index"]
        lines.append(
            f"adjusted Rand index with the task's own {m['known']['groups']} groups: {agreement:.2f} (1 the same, 0 chance)"
        )
    lines.append(
        f"nothing uses this tree until it is pasted into the task's file ({task.name}.yaml); rename its groups as you like"
    )
    return "\n".join(lines) + "\n"
