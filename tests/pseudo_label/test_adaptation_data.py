"""Training and scoring speak of the same thing: a model trained on given labels answers with them, in both label forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from adapt.core.errors import ConfigError
from adapt.core.spans import NO_TARGET, LabelLoss, Span
from adapt.model.batches import collate
from adapt.model.gpt import GPT, materialize
from adapt.objective import contribution, part_counts
from adapt.objective_config import BalanceConfig, ObjectiveConfig, PartWeights
from adapt.scoring.scorer_config import ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir
from pseudo_label.adaptation_data import ReadingConfig, training_rows
from pseudo_label.decision import Method
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions
from pseudo_label.prompts import Prompt
from pseudo_label.store import PseudoLabel
from pseudo_label.tasks import TaskConfig, TaskRow, load_task, read_rows, row_from
from tests.support.tiny_models import DEMO, tiny_config

STEPS = 40


def given(task: TaskConfig, count: int) -> tuple[list[TaskRow], list[PseudoLabel]]:
    rows = list(read_rows(DEMO / "clue" / task.name / "dev.json", task))[:count]
    return rows, [label_of(row.line, row.label or "") for row in rows]


def label_of(line: int, label: str, *, is_selected: bool = True, is_held_out: bool = False) -> PseudoLabel:
    sure: dict[str, Any] = {"margin": 1.0, "confidence": 1.0, "agreement": 1.0, "labels": [], "scores": [], "probabilities": []}
    return PseudoLabel(text_digest=f"line {line}", line=line, label=label, is_selected=is_selected, is_held_out=is_held_out, **sure)


@pytest.mark.parametrize(
    ("loss", "prompt"),
    [
        (LabelLoss.CLM, "reference"),
        (LabelLoss.MLM, "label_first"),
        *(
            pytest.param(loss, prompt, marks=pytest.mark.slow)
            for loss, prompt in ((LabelLoss.MLM, "reference"), (LabelLoss.BOTH, "reference"), (LabelLoss.CHANNEL, "label_first"))
        ),
    ],
)
def test_a_model_trained_on_given_labels_answers_with_them(tokenizer: Tokenizer, loss: LabelLoss, prompt: str) -> None:
    task = load_task("demo_topics", [conf_dir() / "task"])
    rows, labels = given(task, 24)
    model = materialize(GPT(tiny_config(init_std=0.05)), seed=0)
    reading = ReadingConfig(prompt=prompt)
    batch = collate(training_rows(task, rows, labels, tokenizer, model.context_length, loss, reading)[0])
    counts = part_counts(model, batch)
    even = [torch.full((n,), 1.0 / n) for n in model.expert_counts]
    # The text's own loss is left out: with it a model this small needs minutes.
    weights = PartWeights(context=0.0, prompt=0.0)
    objective = ObjectiveConfig(pseudo_label=loss, weights=weights, balance=BalanceConfig(weight=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        contribution(model, batch, counts, even, objective, 1).loss.backward()
        optimizer.step()
    asked = replace(task, reference=prompt)
    if loss is LabelLoss.MLM:
        asked = replace(asked, prompts={prompt: replace(task.prompts[prompt], criterion="masked_lm")})
    scorer = TaskScorer(asked, ScoringConfig(form=loss.form, prompts=[prompt]), TreeScorer(model.eval(), ScorerConfig()), tokenizer)
    answers = predictions(scorer.scores(rows, scorer.fit(Method.RAW, [], coarse_to_fine=None)), rows, asked)
    assert sum(a == r.label for a, r in zip(answers, rows, strict=True)) >= 23


def test_held_out_and_unselected_rows_are_not_trained_on(tokenizer: Tokenizer) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    rows, labels = given(task, 4)
    states = [(True, False), (False, True), (False, False), (True, False)]
    marked = [label_of(x.line, x.label, is_selected=s, is_held_out=h) for x, (s, h) in zip(labels, states, strict=True)]
    training, held_out = training_rows(task, rows, marked, tokenizer, 96, LabelLoss.CLM, ReadingConfig())
    assert (len(training), len(held_out)) == (2, 1)
    assert all((reading.kinds_T == int(Span.LABEL)).any() for (reading,) in [*training, *held_out])


@pytest.mark.parametrize("loss", [LabelLoss.MLM, LabelLoss.BOTH])
def test_a_masked_label_before_its_text_takes_a_bidirectional_reading(tokenizer: Tokenizer, loss: LabelLoss) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    rows, labels = given(task, 2)
    training, _ = training_rows(task, rows, labels, tokenizer, 96, loss, ReadingConfig(prompt="label_first"))
    for causal, bidirectional in training:
        is_label = (causal.kinds_T == int(Span.LABEL)) & (causal.targets_T != NO_TARGET)
        assert is_label.any() == (loss is LabelLoss.BOTH)
        assert (causal.inputs_T == tokenizer.mask_id).any() == (loss is LabelLoss.MLM)
        assert (causal.targets_T != NO_TARGET).sum() > is_label.sum(), "the text is learnt from the causal reading"
        assert bidirectional.is_bidirectional and not causal.is_bidirectional
        predicts = bidirectional.targets_T != NO_TARGET
        assert (bidirectional.kinds_T[predicts] == int(Span.LABEL)).all() and predicts.any()
        assert (bidirectional.inputs_T[predicts] == tokenizer.mask_id).all()


def test_unselected_rows_are_read_for_their_text_alone(tokenizer: Tokenizer) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    rows, labels = given(task, 4)
    marked = [replace(label, is_selected=index == 0, is_held_out=index == 1) for index, label in enumerate(labels)]
    without, held_out = training_rows(task, rows, marked, tokenizer, 96, LabelLoss.CLM, ReadingConfig())
    training, same_held_out = training_rows(task, rows, marked, tokenizer, 96, LabelLoss.CLM, ReadingConfig(reads_unselected=True))
    assert len(without) == 1 and len(training) == 3 and len(same_held_out) == len(held_out) == 1
    for (reading,), row in zip(training[1:], rows[2:], strict=True):
        assert tokenizer.decode(reading.inputs_T[1:].tolist()) == row.texts["sentence"]
        assert set(reading.kinds_T.tolist()) == {int(Span.CONTEXT)}


def test_unselected_pairs_are_read_whole(tokenizer: Tokenizer) -> None:
    task = load_task("ocnli", [conf_dir() / "task"])
    row = row_from({"sentence1": "下雨了", "sentence2": "地是湿的", "id": 0}, task, "made up", 1)
    label = label_of(1, "entailment", is_selected=False)
    config = ReadingConfig(reads_unselected=True)
    ([reading],), _ = training_rows(task, [row], [label], tokenizer, 96, LabelLoss.CLM, config)
    assert tokenizer.decode(reading.inputs_T[1:].tolist()) == "下雨了，地是湿的"
    assert set(reading.kinds_T.tolist()) == {int(Span.CONTEXT), int(Span.PROMPT)}


def test_rows_without_a_label_cannot_be_read_with_the_label_first(tokenizer: Tokenizer) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    rows, labels = given(task, 2)
    with pytest.raises(ConfigError, match="reads_unselected=false"):
        first = replace(task, reference="label_first")
        training_rows(first, rows, labels, tokenizer, 96, LabelLoss.CLM, ReadingConfig(reads_unselected=True))


@pytest.mark.parametrize("turn", [1, -1])
def test_a_soft_label_is_one_reading_a_label_with_weights_that_sum_to_1(turn: int, tokenizer: Tokenizer) -> None:
    """Whatever order the task's labels had when the rows were labelled."""
    task = load_task("demo_topics", [conf_dir() / "task"])
    rows, labels = given(task, 2)
    probabilities = [[0.5, 0.1, 0.3, 0.1, *[0.0] * (len(task.labels) - 4)], [0.0, 1.0, *[0.0] * (len(task.labels) - 2)]]
    order = task.labels[::turn]
    soft = [replace(label, labels=order, probabilities=p[::turn]) for label, p in zip(labels, probabilities, strict=True)]
    training, _ = training_rows(task, rows, soft, tokenizer, 96, LabelLoss.CLM, ReadingConfig(soft_labels=2))
    assert [[reading.weight for reading in row] for row in training] == [pytest.approx([5 / 8, 3 / 8]), [1.0]]
    prompt = Prompt(task, "reference", tokenizer, 96)
    wanted = [[task.labels[0], task.labels[2]], [task.labels[1]]]
    for row, names, readings in zip(rows, wanted, training, strict=True):
        for name, reading in zip(names, readings, strict=True):
            assert np.array_equal(reading.inputs_T, prompt.labelled(row, name).ids_T)


def test_the_channel_form_wants_its_label_first(tokenizer: Tokenizer) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    rows, labels = given(task, 2)
    with pytest.raises(ConfigError, match="needs one with its label first"):
        training_rows(task, rows, labels, tokenizer, 96, LabelLoss.CHANNEL, ReadingConfig())


def test_the_channel_form_predicts_the_text_and_not_the_label(tokenizer: Tokenizer) -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    rows, labels = given(task, 2)
    training, _ = training_rows(task, rows, labels, tokenizer, 96, LabelLoss.CHANNEL, ReadingConfig(prompt="label_first"))
    for row, (reading,) in zip(rows, training, strict=True):
        is_label = reading.kinds_T == int(Span.LABEL)
        assert tokenizer.decode(reading.targets_T[is_label & (reading.targets_T >= 0)].tolist()) == row.texts["sentence"]
        assert not (reading.targets_T[reading.kinds_T == int(Span.CONTEXT)] >= 0).any()
