"""An export with random weights, made in a second, for tests of what goes into `predict` and what comes out."""

from __future__ import annotations

from pathlib import Path

from adapt.checkpoint.weights import save_model
from adapt.model.gpt import GPT
from adapt.text.contract import TextTokenizer
from pipelines.config.locations import conf_dir
from pseudo_label.decision import Decision, FittedScores, Method
from pseudo_label.labelling import ScoringConfig
from pseudo_label.predictor import PredictorSpec, save_spec
from pseudo_label.tasks import load_task

TASK = "demo_reviews"


def write_export(place: Path, model: GPT, tokenizer: TextTokenizer) -> Path:
    """Write a checkpoint and how it answers: the reference prompt as it is."""
    place.mkdir(parents=True, exist_ok=True)
    save_model(place, model.config, model.named_parameters(), tokenizer)
    decision = Decision(method=Method.RAW, labels=FittedScores(prompts=["reference"]), groups=None, n_fitted=0)
    task = load_task(TASK, [conf_dir() / "task"])
    save_spec(place, PredictorSpec(task=task, scoring=ScoringConfig(prompts=["reference"]), decision=decision))
    return place
