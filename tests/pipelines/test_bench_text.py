"""The benchmarks of cleaning and of vocabulary extension: options, refusals, small cases; what they measure is never asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench.__main__ import main
from pipelines.bench.contract import all_benchmarks
from tests.support.hf_checkpoints import BYTE_LEVEL
from tests.support.merged_tokenizers import make_base


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["corpus", "speed=9"], "unknown option 'speed'"),
        (["corpus", "text=/no/such.txt"], "/no/such.txt"),
        (["extension"], "needs text="),
        (["extension", "text=/no/such.txt", "steps=0"], "steps=0: give a whole number"),
        (["extension", "text=/no/such.txt", "precision=fp8"], "precision=fp8: give one of: fp32, bf16"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_cleaning_is_measured_by_file(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    (tmp_path / "a.txt").write_text("窗外的雨一直下到傍晚，巷子里没有一个行人。\n" * 40, encoding="utf-8")
    (row,) = all_benchmarks().get("corpus").run({"text": f"{tmp_path}/a.txt", "evaluation": f"{tmp_path}/a.txt", "rounds": "1"})
    assert row["file"] == "a.txt" and row["documents"] == 40


@pytest.mark.slow
def test_an_extended_hugging_face_base_is_measured_beside_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", BYTE_LEVEL, 0, max_position_embeddings=256)
    lines = [f"患者入院后行腹腔镜胆囊切除术，第{number}天恢复良好。" for number in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    options = {"text": f"{tmp_path}/a.txt", "steps": "2", "documents": "4", "held_out": "4", "pieces": "10", "new_rows": "3"}
    rows = all_benchmarks().get("extension").run({**options, "checkpoint": str(base)})
    assert rows[1]["pieces"] == rows[2]["pieces"] == rows[0]["pieces"] + 10
    assert rows[1]["tokens/document"] < rows[0]["tokens/document"]
    assert rows[1]["nats/character before"] == rows[2]["nats/character before"]


@pytest.mark.slow
def test_an_extended_base_is_measured_beside_the_base(tmp_path: Path) -> None:
    lines = [f"患者入院后行腹腔镜胆囊切除术，第{number}天恢复良好。" for number in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    options = {"text": f"{tmp_path}/a.txt", "steps": "2", "documents": "4", "held_out": "4", "pieces": "10", "new_rows": "3"}
    rows = all_benchmarks().get("extension").run(options)
    assert [row["pieces"] for row in rows] == [8000, 8010, 8010]
    in_bf16 = all_benchmarks().get("extension").run({**options, "precision": "bf16"})
    for row, other in zip(rows, in_bf16, strict=True):
        assert row["nats/character before"] == other["nats/character before"]
        assert row["after 2 steps"] != other["after 2 steps"] == pytest.approx(row["after 2 steps"], rel=0.01)
    assert rows[1]["tokens/document"] < rows[0]["tokens/document"]
    assert rows[1]["nats/character before"] == rows[2]["nats/character before"]
