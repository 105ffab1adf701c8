"""How often the domains of a corpus come, and the precision of the finished checkpoint: refusals, keys, what ranks are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.checkpoint.weights import is_router, iterate_tensors, load_model
from adapt.core.artifacts import open_artifact
from adapt.core.runtime import RankInfo
from adapt.text.tokenized_corpus import open_tokenized
from pipelines.config.locations import demo_dir
from pipelines.stages import pretrain
from pipelines.stages.run import Run
from tests.support.command_line import SMALLEST, composed, refused

RunHere = Callable[[str, list[str]], str]


def arguments(smallest_run: Path, *more: str) -> list[str]:
    return [*SMALLEST, f"run.dir={smallest_run.parent}", *more]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("pretrain.repeats={genral: 2}", ["pretrain.repeats", "no domain genral", "general"]),
        ("pretrain.repeats={general: 0}", ["pretrain.repeats", "every domain", "left out"]),
        ("pretrain.repeats={general: -1}", ["pretrain", "repeats.general: -1"]),
        ("pretrain.repeats={general: often}", ["pretrain.repeats", "general", "int", "often"]),
        ("pretrain.repeats={general: 1.5}", ["pretrain.repeats", "general", "int", "1.5"]),
        ("pretrain.repeats=3", ["pretrain.repeats", "3"]),
        ("pretrain.save_precision=fp8", ["pretrain.save_precision", "fp16", "bf16"]),
        ("pretrain.save_precision=auto", ["pretrain", "save_precision: auto is for computing", "fp32, bf16 or fp16"]),
    ],
)
def test_repeats_that_make_no_sense_are_refused_in_one_line(
    argument: str, words: list[str], smallest_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(smallest_run.parent.glob("**/manifest.json"))
    refused("pretrain", arguments(smallest_run, argument), words, monkeypatch, capsys)
    assert sorted(smallest_run.parent.glob("**/manifest.json")) == before


def reads_of(place: Path, *more: str) -> pretrain.PretrainReads:
    return pretrain.STAGE.reads(Run(composed("pretrain", arguments(place, *more))), None)


def test_other_repeats_and_another_precision_make_another_base(smallest_run: Path) -> None:
    settings: list[list[str]] = [
        [],
        ["pretrain.repeats={general: 2}"],
        ["pretrain.repeats={general: 3}"],
        ["pretrain.save_precision=bf16"],
    ]
    keys = [pretrain.STAGE.key(reads_of(smallest_run, *more)).digest() for more in [*settings, []]]
    assert len(set(keys)) == len(settings)
    assert keys[0] == keys[-1] == open_artifact((smallest_run / "pretrain").resolve()).key


class Stopped(Exception):
    """Ends a build where training would start."""


@pytest.mark.parametrize("repeats", [None, {"general": 0}, {"added": 3}, {"added": 0, "general": 2}])
def test_ranks_read_each_domain_as_often_as_asked(
    repeats: dict[str, int] | None, smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import adapt.train.job

    (tmp_path / "added_here.txt").write_text("早上下雨，晚上晴。\n晚上下雨，早上晴。\n", encoding="utf-8")
    seen: dict[str, Any] = {}

    def stop(
        model: object, tokenizer: object, data: adapt.train.job.TrainData, job: adapt.train.job.TrainJob, rank: object
    ) -> None:
        rows = [data.training.row(index, 0) for index in range(len(data.training))]
        seen["tokens"] = Counter(reading.domain for row in rows for reading in row for _ in reading.inputs_T)
        raise Stopped

    monkeypatch.setattr(adapt.train.job, "run_training", stop)
    monkeypatch.setattr(pretrain, "launch", lambda job, *_: pretrain.train_rank(job, RankInfo(rank=0, world_size=1, local_rank=0)))
    more = [f"data.corpus=[{demo_dir()}/corpus/*.txt,{tmp_path}/added_here.txt]"]
    more += [] if repeats is None else [f"pretrain.repeats={repeats}".replace("'", "")]
    run, reads = Run(composed("pretrain", arguments(smallest_run, *more))), reads_of(smallest_run, *more)
    (tmp_path / "work").mkdir()
    with pytest.raises(Stopped):
        pretrain.STAGE.build(reads, run.workshop, tmp_path / "result", tmp_path / "work")
    corpus = open_tokenized(tmp_path / "work" / "corpus" / "train")
    asked = {"added": 1, "general": 1, **(repeats or {})}
    by_number = [asked["added"], asked["general"]]
    wanted: Counter[int] = Counter()
    for domain, length in zip(corpus.domains_D.tolist(), corpus.lengths_D.tolist(), strict=True):
        wanted[domain] += length * by_number[domain]
    assert set(corpus.domains_D.tolist()) == {0, 1}
    assert seen["tokens"] == +wanted


def test_a_base_is_saved_in_bf16_and_goes_on_from_there(copied_run: Path, run_here: RunHere) -> None:
    more = ["pretrain.save_precision=bf16", "pretrain.repeats={general: 2}", "pretrain.steps=2"]
    run_here("pretrain", [*SMALLEST, f"run.dir={copied_run}", *more])
    place = (copied_run / "demo" / "pretrain").resolve()
    for name, tensor in iterate_tensors(place):
        assert tensor.dtype == (torch.float32 if is_router(name) else torch.bfloat16), name
    assert all(weight.dtype == torch.float32 for weight in load_model(place).parameters())
    run_here(
        "evaluate",
        [*SMALLEST, f"run.dir={copied_run}", "task=demo_reviews", "evaluate.methods=[raw]", "evaluate.method=raw", "split=dev"],
    )
