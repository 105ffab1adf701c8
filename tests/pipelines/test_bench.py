"""The benchmark command: interleaving, names, options, JSON; what it measures is never asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.core.errors import ConfigError
from adapt.core.spans import Reading, Span
from adapt.model.batches import collate
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.scoring.tree_scorer import ScorerConfig, TreeScorer
from pipelines.bench import lm_eval_baseline, scoring, scoring_growth
from pipelines.bench.__main__ import main
from pipelines.bench.contract import BENCHMARKS, Benchmark, all_benchmarks, interleaved_medians
from pipelines.bench.scoring_cases import LABEL_KINDS, label_example

EXTRA = "the lm-eval extra is not installed"


@pytest.fixture
def small() -> GPT:
    """Return a small model whose biases and norms are random too, so that no weight can be forgotten or swapped unseen."""
    model = materialize(GPT(GPTConfig(n_layers=3, hidden_size=24, n_heads=3, context_length=64, vocab_size=8192)), seed=5)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def some_examples() -> list[list[Reading]]:
    return [label_example(n_text, n_labels, index) for index, (n_text, n_labels) in enumerate([(20, 5), (31, 9), (20, 7)])]


def test_ways_are_run_in_turn_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    medians = interleaved_medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert set(medians) == {"a", "b"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a benchmark"),
        (["scorin"], "did you mean 'scoring'"),
        (["scoring", "fast"], "expected option=value"),
        (["scoring", "speed=9"], "unknown option 'speed'"),
        (["scoring", "rounds=0"], "rounds=0: give a whole number"),
        (["scoring", "shapes=all"], "shapes=all: give a whole number"),
        (["scoring", "layouts=packed,auto"], "layouts=packed,auto: give none, or some of: packed"),
        (["scoring_growth", "shapes=2"], "unknown option 'shapes'"),
        (["scoring_growth", "rounds=-1"], "rounds=-1: give a whole number"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_rows_are_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    all_benchmarks()
    planted = Benchmark(name="planted", title="T", baseline="B", run=lambda options: [{"x": 1.5, "y": options["y"]}])
    monkeypatch.setitem(BENCHMARKS._entries, "planted", planted)
    assert main(["planted", "y=two", f"out={tmp_path}/rows.json"]) == 0
    assert "1.5" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [{"x": 1.5, "y": "two"}]


def test_the_twin_says_what_our_model_says(small: GPT) -> None:
    pytest.importorskip("transformers", reason=EXTRA)
    batch = collate([[reading] for reading in some_examples()[1]])
    with torch.inference_mode():
        ours = small.logits(small(batch.inputs).hidden_BTH)
        theirs = lm_eval_baseline.gpt2_twin(small)(batch.inputs.ids_BT).logits
    is_real = batch.inputs.documents_BT > 0
    assert ours[is_real].std() > 0.1
    torch.testing.assert_close(theirs[is_real], ours[is_real], atol=1e-4, rtol=0)


def test_the_harness_sums_what_the_tree_sums(small: GPT) -> None:
    if missing := lm_eval_baseline.missing_packages():
        pytest.skip(f"{EXTRA}: {missing}")
    lm = lm_eval_baseline.harness(lm_eval_baseline.gpt2_twin(small))
    theirs = lm_eval_baseline.harness_sums(lm, lm_eval_baseline.requests_of(some_examples()))
    ours = np.concatenate([sums[:, Span.LABEL] for sums in TreeScorer(small, ScorerConfig()).score(some_examples(), LABEL_KINDS)])
    assert lm.batch_size == lm_eval_baseline.BATCH_ROWS
    np.testing.assert_allclose(theirs, ours, atol=1e-3)


def test_a_request_is_the_text_and_the_label_that_made_the_reading() -> None:
    example = label_example(12, 30, 0)
    requests = lm_eval_baseline.requests_of([example])
    for reading, (strings, text, label) in zip(example, requests, strict=True):
        assert text + label == reading.inputs_T.tolist()
        assert (len(text), 2 <= len(label) <= 6) == (12, True)
        assert [int(word) for word in " ".join(strings).split()] == text + label
    assert len({strings for strings, _, _ in requests}) == len(requests)


def test_without_the_extra_the_header_says_so_and_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "missing_packages", lambda: ["lm_eval"])
    header = scoring._baseline()
    assert header.startswith("naive full rows")
    assert "left out: no lm_eval" in header
    assert "pip install -c constraints.txt -e '.[lm-eval]'" in header


def test_ways_that_differ_are_not_timed() -> None:
    ways = {"tree": lambda: [-1.0, -2.0], "naive": lambda: [-1.01]}
    with pytest.raises(ConfigError, match=r"naive, tree: sums differ by 1\.00e-02"):
        scoring._timed(ways, rounds=1)
    assert scoring._timed({**ways, "naive": lambda: [-1.0]}, rounds=1)[1] == 0.0
    with pytest.raises(ConfigError, match="nan"):
        scoring._timed({**ways, "naive": lambda: [float("nan")]}, rounds=1)


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_shape_becomes_a_row(small: GPT, is_missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_missing:
        monkeypatch.setattr(scoring, "missing_packages", lambda: ["lm_eval"])
    elif missing := lm_eval_baseline.missing_packages():
        pytest.skip(f"{EXTRA}: {missing}")
    monkeypatch.setattr(scoring, "scoring_model", lambda: small)
    monkeypatch.setattr(scoring, "_SHAPES", ((20, 4, 2, 1, 6.0), (30, 20, 1, 1, 10.0)))
    rows = scoring._run({"layouts": "packed,cache,rows"})
    assert [(row["labels"], row["examples"], row["labels x text"]) for row in rows] == [(4, 2, 80), (20, 1, 600)]
    assert all(20 < row["nodes"] < 30 + 20 * 6 + 1 for row in rows)
    for column in ("target", "lm-eval/tree", "lm-eval s/example"):
        assert all((column in row) is not is_missing for row in rows)
    for name in ("naive", "tree", "packed", "cache", "rows"):
        assert all(row[f"{name} s/example"] > 0 for row in rows)


@pytest.mark.slow
def test_growth_is_measured(tmp_path: Path) -> None:
    if not scoring_growth.STATUS.exists():
        pytest.skip("peak memory is read from Linux's /proc")
    assert main(["scoring_growth", "rounds=1", "most_examples=16", f"out={tmp_path}/rows.json"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["growing"] for row in rows] == ["labels"] * 4 + ["examples"]
    assert [row["labels"] for row in rows[:4]] == [2, 8, 32, 128]
    assert all(row["peak MiB above the model"] > 0 for row in rows)


@pytest.mark.slow
def test_the_scoring_benchmark_runs(tmp_path: Path) -> None:
    assert main(["scoring", "shapes=2", "rounds=1", f"out={tmp_path}/rows.json"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["text"], row["labels"]) for row in rows] == [(128, 2), (128, 15)]
    assert all(row["largest difference"] < 1e-3 for row in rows)
