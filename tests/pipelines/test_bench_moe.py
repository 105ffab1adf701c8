"""`bench moe` and `bench step`: that what is timed computes the layer, that rows say what they promise; never how fast it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.core.errors import AdaptError, ConfigError
from adapt.core.precision import Precision
from adapt.text.packing import ReadingList
from pipelines.bench import moe_measure, moe_peers, own_memory, step_measure
from pipelines.bench.__main__ import _table, main
from pipelines.bench.contract import cpu_seconds, wall_seconds
from pipelines.bench.moe import _GROUPS, _target
from pipelines.bench.moe_cases import (
    Case,
    LayerWeights,
    Way,
    bare_grouped_mm,
    draw_tokens,
    draw_weights,
    loop,
    ours,
    plain_inputs,
    step_bytes,
)
from pipelines.bench.moe_measure import PEER_NAMES, Settings, time_alone
from pipelines.bench.moe_peers import PEERS, build_peer
from pipelines.bench.step import _peak
from pipelines.ranks.fresh_processes import as_a_rank, in_child

SMALL = Case(experts=12, tokens=300, precision=Precision.FP32, hidden=24, ffn=40)
SIZES = ["cases=12x96s", "hidden=16", "ffn=32", "repeats=1", "dtypes=fp32", "loop_experts=12"]
SIZE: dict[str, Any] = {"n_layers": 2, "hidden_size": 8, "n_heads": 1, "context_length": 16}
NO_BIAS = ("up_bias_EF", "down_bias_EH")


def with_biases(weights: LayerWeights) -> LayerWeights:
    torch.manual_seed(3)
    return dataclasses.replace(weights, **{name: torch.randn_like(getattr(weights, name)) for name in NO_BIAS})


def gradients(way: Way) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in way.parameters.items()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values()), found.keys()
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("is_skewed", [False, True])
def test_our_layer_is_the_python_loop_over_experts(is_skewed: bool) -> None:
    case = dataclasses.replace(SMALL, is_skewed=is_skewed)
    weights = with_biases(draw_weights(case))
    x, gradient, expert_N = draw_tokens(case, weights)
    our_way, slow_way = ours(case, weights, plain_inputs(x)), loop(case, weights)
    (out, dx), (slow_out, slow_dx) = our_way.step(x, gradient), slow_way.step(x, gradient)
    torch.testing.assert_close(out, slow_out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx, slow_dx, rtol=1e-5, atol=1e-5)
    theirs = gradients(slow_way)
    for name, value in gradients(our_way).items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5)
    assert len(expert_N) == case.tokens


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("name", [*PEERS, "bare grouped_mm"])
def test_a_peer_computes_finite_outputs_and_gradients_and_our_function_unless_it_drops(name: str, precision: Precision) -> None:
    case = Case(experts=8, tokens=256, precision=precision, hidden=32, ffn=64)
    weights = draw_weights(case)
    x, gradient, _ = draw_tokens(case, weights)
    way = bare_grouped_mm(case, weights) if name not in PEERS else build_peer(name, case, weights)
    if isinstance(way, str):
        pytest.skip(way)
    out, dx = way.step(x, gradient)
    assert out.isfinite().all()
    assert dx.isfinite().all()
    assert sum(value.numel() for value in gradients(way).values()) >= 2 * 8 * 32 * 64
    our_way = ours(case, weights, plain_inputs(x))
    our_out, our_dx = our_way.step(x, gradient)
    limit = 1e-5 if precision is Precision.FP32 else 4e-2
    assert way.drops == (name == "deepspeed drop")
    if way.drops:
        is_whole = (out - our_out).abs().amax(-1) < limit
        assert 0.5 < float(is_whole.float().mean()) < 1.0
    else:
        torch.testing.assert_close(out, our_out, rtol=limit, atol=limit)
        torch.testing.assert_close(dx, our_dx, rtol=limit, atol=limit)


def test_a_step_leaves_weights_and_inputs_as_they_were() -> None:
    weights = draw_weights(SMALL)
    x, gradient, _ = draw_tokens(SMALL, weights)
    before = x.clone(), weights.up_EFH.clone()
    way = ours(SMALL, weights, plain_inputs(x))
    way.timed_step(x, gradient)
    assert all(parameter.grad is None for parameter in way.parameters.values())
    torch.testing.assert_close((x, weights.up_EFH), before, rtol=0, atol=0)
    assert way.parameters["experts.up_weight"].data_ptr() == weights.up_EFH.data_ptr(), "weights are shared, not copied"


@pytest.mark.parametrize(("experts", "tokens"), [(32, 2048), (16, 4096)])
def test_the_router_itself_sends_tokens_where_the_case_wants_them(experts: int, tokens: int) -> None:
    for is_skewed, low, high in ((False, 1.0, 1.6), (True, 8.0, 10.0)):
        case = Case(experts=experts, tokens=tokens, precision=Precision.BF16, hidden=64, ffn=8, is_skewed=is_skewed)
        weights = draw_weights(case)
        x, _, wanted_N = draw_tokens(case, weights)
        chosen_N = (x.float() @ weights.router_EH.float().t()).argmax(-1).flatten()
        assert (chosen_N == wanted_N).all()
        assert low < float(torch.bincount(wanted_N).max()) * experts / tokens < high


def test_the_formula_counts_activations_and_weight_gradients() -> None:
    case = Case(experts=2, tokens=10, precision=Precision.BF16, hidden=4, ffn=6)
    n_weights = 2 * 4 + 2 * (6 * 4 + 6 + 4 * 6 + 4)
    assert step_bytes(case, draw_weights(case)) == 2 * (10 * (2 * 4 + 6) + n_weights)


def test_ways_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Case, weights: LayerWeights) -> Way:
        way = loop(case, weights)
        return dataclasses.replace(way, forward=lambda x: way.forward(x) * 1.01)

    monkeypatch.setattr(moe_measure, "bare_grouped_mm", wrong)
    with pytest.raises(ConfigError, match="bare grouped_mm: results differ by"):
        time_alone(SMALL, Settings(repeats=1, peers=("bare grouped_mm",), loop_experts=1))


def test_a_peer_that_is_missing_or_fails_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(case: Case, weights: LayerWeights) -> Way:
        def forward(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel\nmore")

        return Way(forward=forward, parameters={})

    monkeypatch.setitem(moe_peers.PEERS, "hf switch", moe_peers.Peer(package="not_there", build=failing))
    monkeypatch.setitem(moe_peers.PEERS, "deepspeed", moe_peers.Peer(package="torch", build=failing))
    timed = time_alone(SMALL, Settings(repeats=1, peers=("hf switch", "deepspeed", "loop"), loop_experts=11))
    assert timed.left_out == {
        "hf switch": "not_there is not installed",
        "deepspeed": "cannot run here: no kernel",
        "loop": "more than loop_experts=11",
    }
    assert set(timed.seconds) == {"dense", "ours"}


def test_a_peer_that_refuses_so_few_tokens_is_left_out_and_the_rest_is_timed() -> None:
    case = dataclasses.replace(SMALL, experts=4, tokens=1)
    timed = time_alone(case, Settings(repeats=1, peers=("deepspeed drop", "loop"), loop_experts=4))
    assert set(timed.left_out) == {"deepspeed drop"}
    assert timed.left_out["deepspeed drop"].startswith("cannot run here: ")
    assert set(timed.seconds) == {"dense", "ours", "loop"}


def test_targets_are_those_of_the_tokens_per_expert() -> None:
    def target(group: str, experts: int, tokens: int, **changes: Any) -> float | None:
        case = dataclasses.replace(Case(experts=experts, tokens=tokens, precision=Precision.FP32), **changes)
        return _target(_GROUPS[group], case)

    assert [target("alone", e, t) for e, t in ((8, 8192), (8, 2048), (64, 8192), (32, 2048), (64, 2048))] == [
        1.15,
        1.15,
        None,
        1.35,
        2.2,
    ]
    assert [target("zero2", e, 2048) for e in (8, 32, 64)] == [1.3, 1.7, 2.4]
    assert target("alone", 32, 2048, is_skewed=True) == 1.7
    assert target("expert_parallel", 32, 2048) == 1.35
    assert target("expert_parallel", 32, 2048, precision=Precision.BF16) is None
    assert target("expert_parallel", 64, 2048) is None
    assert target("alone", 32, 2048, hidden=256) is None


def test_a_child_has_the_settings_of_a_rank_and_errors_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_child(as_a_rank(1), 1, _seen_in_child) == ("1", True, 1)
    assert capfd.readouterr().out == ""
    with pytest.raises(AdaptError, match="measuring process died"):
        in_child({}, 1, _die)


def _seen_in_child() -> tuple[str | None, bool, int]:
    import os

    print("not for the table")
    return os.environ.get("OMP_NUM_THREADS"), int(os.environ["MALLOC_TRIM_THRESHOLD_"]) > 1 << 30, torch.get_num_threads()


def _die() -> None:
    import os

    os._exit(3)


def test_private_growth_is_that_of_the_work_and_not_of_what_was_freed_before() -> None:
    if not own_memory.STATUS.exists():
        pytest.skip("peak memory is read from Linux's /proc")
    assert 60 < in_child({}, 1, _growth_of_64_mib) < 72


def _growth_of_64_mib() -> float:
    del (earlier := [torch.ones(1 << 18) for _ in range(100)])[:]  # noqa: F841  freed, and perhaps still held
    return own_memory.private_growth_mib(lambda: torch.ones(1 << 24).sum())


def test_stopwatches_measure_seconds() -> None:
    assert 0.0 <= cpu_seconds(lambda: None) < 0.5
    assert 0.0 <= wall_seconds(lambda: None) < 0.5


def test_what_is_the_same_in_every_row_is_printed_once() -> None:
    text = _table([{"a": 1, "b": 2.0, "c": None}, {"a": 1, "b": 3.0, "c": "x"}])
    assert text.splitlines() == ["b  c", "2  -", "3  x", "in every row: a 1"]
    assert _table([{"a": 1}]).splitlines() == ["a", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["moe", "cases=8"], "cases=8: give experts x tokens"),
        (["moe", "groups=two_ranks"], "groups=two_ranks: no 'two_ranks'; give none, or some of: alone,zero2,expert_parallel"),
        (["moe", "peers=megablocks"], "peers=megablocks: no 'megablocks'"),
        (["moe", "clock=cpu", "threads=2", "device=cpu"], "clock=cpu counts one thread's work"),
        (["moe", "clock=sun"], "clock=sun: give one of: wall, cpu"),
        (["moe", "cases=8x64s", "device=cpu"], "8 experts cannot be skewed"),
        (["moe", "cases=64x64", "hidden=32"], "64 experts are more than hidden=32"),
        (["moe", "cases=1x64"], "cases=1x64: a MoE layer has two experts or more"),
        (["moe", "cases=9x64", "groups=expert_parallel", "device=cpu"], "2 ranks cannot share 9 experts evenly"),
        (["moe", "dtypes=fp8"], "dtypes=fp8: no 'fp8'"),
        (["step", "models=7m_mo8"], "did you mean '7m_moe8'"),
        (["step", "device=tpu"], "device=tpu: give one of:"),
        (["step", "clock=cpu", "threads=2", "device=cpu"], "clock=cpu counts one thread's work"),
        (["step", "rows=0"], "rows=0: give a whole number"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_moe_benchmark_writes_the_rows_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["moe", *SIZES, "groups=alone,zero2", "device=cpu", f"out={tmp_path}/rows.json"]) == 0
    assert "bytes per value x (tokens x (2 x hidden + FFN) + weight gradients)" in capsys.readouterr().out
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["baseline"].startswith("dense")
    rows = content["rows"]
    assert [(row["group"], row["routing"]) for row in rows] == [("alone", "skewed"), ("under ZeRO-2", "skewed")]
    for row in rows:
        assert (row["experts"], row["tokens"], row["tokens/expert"], row["threads"]) == (12, 96, 8.0, 1)
        assert row["dense ms"] > 0
        assert row["ours/dense"] > 0
        is_alone = row["group"] == "alone"
        assert (row["optimizer ms"] is None) == is_alone
        for name in PEER_NAMES:
            is_there = name not in PEERS or importlib.util.find_spec(PEERS[name].package) is not None
            assert (row[f"{name}/dense"] is not None) == (is_alone and is_there), row["left out"]
        for name in ("step MiB", "formula MiB", "memory/formula", "memory target", "freed kept/formula"):
            assert (row[name] is not None) == (is_alone and own_memory.STATUS.exists())
        assert (row["largest difference"] is not None) == is_alone
        assert (row["fastest dropless peer"] in PEER_NAMES) == is_alone


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["", "s"])
def test_the_moe_benchmark_has_a_row_of_two_ranks_that_share_experts(routing: str, tmp_path: Path) -> None:
    given = [f"cases=12x96{routing}", "hidden=16", "ffn=32", "repeats=1", "dtypes=fp32,bf16"]
    assert main(["moe", *given, "groups=expert_parallel", "device=cpu", f"out={tmp_path}/rows.json"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["group"], row["dtype"]) for row in rows] == [("expert parallel 2", "fp32"), ("expert parallel 2", "bf16")]
    for row in rows:
        assert (row["experts"], row["tokens"]) == (12, 96)
        assert row["dense ms"] > 0
        assert row["ours/dense"] > 0
        assert 0 <= row["largest difference"] <= 0.04
        assert row["step MiB"] is None


@pytest.mark.slow
def test_the_step_benchmark_writes_the_rows_it_promises(tmp_path: Path) -> None:
    given = ["models=7m_moe4", "dtypes=bf16", "rows=1", "repeats=1", "loop_steps=2", "vocab=2400", "peak_tflops=1", "device=cpu"]
    assert main(["step", *given, f"out={tmp_path}/rows.json"]) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["model"], row["dtype"], row["experts"], row["rows"]) == ("7m_moe4", "bf16", 4, 1)
    assert 200 < row["tokens"] <= 256
    for name in ("dense ms", "sparse ms", "dense optimizer ms", "sparse optimizer ms", "data/training", "MFU %"):
        assert row[name] > 0
    assert row["sparse/dense"] == pytest.approx(row["sparse ms"] / row["dense ms"])
    assert 0 < row["outside %"] < 100
    assert 0 < row["dense outside %"] < 100


def test_on_a_large_device_the_most_rows_that_fit_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.bench.step import _model

    model = dataclasses.replace(_model({"vocab": "300"}, "7m_moe4"), n_layers=2, hidden_size=32, n_heads=2, context_length=16)
    case = step_measure.StepCase(name="small", model=model, precision=Precision.BF16, tokens=1)
    original = step_measure._loss

    def limited(model: object, batch: object, *rest: object) -> torch.Tensor:
        if len(batch.targets_BT) > 4:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("full")
        return original(model, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(step_measure, "_loss", limited)
    monkeypatch.setattr(step_measure, "cuda_seconds", wall_seconds)
    times = step_measure._on_cuda(case, repeats=1)
    assert (times.rows, times.tokens) == (4, 64)
    assert set(times.seconds) == {"sparse", "dense"}
    active = 300 * 32 + 4 * 32 * 32 + 2 * 4 * 32 * 32  # embedding and the first matrices: a lower bound
    assert times.flops > 6 * active * 64
    with pytest.raises(ConfigError, match="does not fit"):
        step_measure._on_cuda(dataclasses.replace(case, rows=8), repeats=1)


def test_a_batch_holds_the_tokens_asked_for_though_packed_rows_have_gaps() -> None:
    readings = [step_measure._document(step_measure.GPTConfig(**SIZE, vocab_size=64), index) for index in range(7)]
    case = step_measure.StepCase(
        name="small",
        model=step_measure.GPTConfig(**{**SIZE, "context_length": 20}, vocab_size=64),
        precision=Precision.FP32,
        tokens=60,
    )
    order, batch = step_measure._first_batch(case, ReadingList(readings))
    assert (order.batch, step_measure._n_tokens(batch)) == (4, 64)


def test_utilisation_is_of_the_peak_given() -> None:
    assert _peak({"peak_tflops": "2"}, "cpu") == 2e12
    assert _peak({}, "cpu") is None


@pytest.mark.gpu
def test_both_benchmarks_run_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert main(["moe", "cases=8x1024", "hidden=256", "ffn=512", "repeats=1", f"out={tmp_path}/moe.json"]) == 0
    assert main(["step", "models=125m_moe64", "rows=1", "repeats=1", f"out={tmp_path}/step.json"]) == 0
    rows = json.loads((tmp_path / "moe.json").read_text())["rows"]
    assert [row["device"] for row in rows] == ["cuda", "cuda"]
    assert json.loads((tmp_path / "step.json").read_text())["rows"][0]["device"] == "cuda"
