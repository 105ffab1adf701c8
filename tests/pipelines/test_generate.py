"""`pipelines.generate`: prompts from the command line and from files, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.tools import generate as tool
from tests.support.command_line import in_process, refused, run_inside
from tests.support.hf_checkpoints import make_checkpoint
from tests.support.lora_cases import base_and_delta
from tests.support.tiny_models import DEMO

BASE = f"checkpoint={DEMO / 'base'}"
Said = Callable[..., tuple[str, str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Said:
    """Return a function that runs the command and returns its standard output and its standard error."""

    def go(*arguments: str) -> tuple[str, str]:
        code, text = in_process("generate", [f"run.dir={tmp_path}/runs", *arguments], monkeypatch, capfd)
        assert code == 0, text
        errors = [line for line in text.splitlines() if line.startswith(("generate:", "precision:"))]
        return text, "\n".join(errors)

    return go


def lines_of(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]


def test_a_prompts_text_is_the_same_on_the_terminal_and_in_a_file(said: Said, tmp_path: Path) -> None:
    chosen = [BASE, "generate.max_tokens=12", "generate.temperature=0.9", "generate.top_p=0.95", "seed=4"]
    text, errors = said(*chosen, "prompt=这家店的菜，很好(吃)")
    assert "tokens in" in errors
    said(*chosen, "prompt=这家店的菜，很好(吃)", f"output={tmp_path}/one.jsonl")
    [line] = lines_of(tmp_path / "one.jsonl")
    assert line["prompt"] == "这家店的菜，很好(吃)"
    assert line["generated"]
    assert text.endswith(f"{line['generated']}\n")
    assert line["generated_ending"] in ("end", "max_tokens")
    (tmp_path / "some.txt").write_text("另一个\n这家店的菜，很好(吃)\n", encoding="utf-8")
    said(*chosen, f"input={tmp_path}/some.txt", f"output={tmp_path}/some.jsonl")
    assert [row["prompt"] for row in lines_of(tmp_path / "some.jsonl")] == ["另一个", "这家店的菜，很好(吃)"]
    assert lines_of(tmp_path / "some.jsonl")[1] == line
    assert not list((tmp_path / "runs").glob(".generate-*"))


def test_rows_keep_their_fields_and_their_order_through_parts(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": n, "question": "好" * (n % 3 + 1)} for n in range(7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chosen = [BASE, f"input={tmp_path}/rows.jsonl", "generate.field=question", "generate.max_tokens=5", "generate.temperature=1"]
    said(*chosen, f"output={tmp_path}/whole.jsonl")
    monkeypatch.setattr(tool, "_PART_ROWS", 3)
    text, _ = said(*chosen, "output=-")
    found = lines_of(tmp_path / "whole.jsonl")
    assert [{"id": row["id"], "question": row["question"]} for row in found] == rows
    assert [json.loads(line) for line in text.splitlines() if line.startswith("{")] == found
    assert len({row["generated"] for row in found}) > 3  # the same prompts, other draws
    said(*chosen, f"output={tmp_path}/table.csv")
    head = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[0]
    assert head == "id,question,generated,generated_tokens,generated_ending"


def test_a_killed_command_goes_on_behind_its_last_part(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import adapt.model.generating as generating

    (tmp_path / "p.txt").write_text("一\n二\n三\n四\n", encoding="utf-8")
    chosen = [BASE, f"input={tmp_path}/p.txt", "generate.max_tokens=4", f"output={tmp_path}/out.jsonl"]
    said(*chosen)
    expected = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(tool, "_PART_ROWS", 2)
    real, calls = generating.generate, list[int]()

    def killed_at_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(generating, "generate", killed_at_the_second)
    assert run_inside("generate", f"run.dir={tmp_path}/runs", *chosen).returncode == 130
    assert (tmp_path / "out.jsonl").read_bytes() == expected  # what was there stays
    [work] = (tmp_path / "runs").glob(".generate-*")
    assert [file.name for file in work.iterdir()] == ["part-00000000.jsonl"]
    said(*chosen)
    assert len(calls) == 3
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_every_kind_of_checkpoint_goes_on(said: Said, tmp_path: Path, smallest_run: Path) -> None:
    foreign = make_checkpoint(tmp_path / "foreign", "qwen3")
    base, delta = base_and_delta(tmp_path / "light", "llama")
    prompt = ["prompt=今天", "generate.max_tokens=3", f"output={tmp_path}/out.jsonl", "force=true"]
    kinds = {
        "own": f"checkpoint={smallest_run}/pretrain",
        "export": f"checkpoint={smallest_run}/export/demo_reviews",
        "foreign": f"checkpoint={foreign}",
        "delta": f"checkpoint={delta}",
    }
    found = {}
    for kind, argument in kinds.items():
        said(argument, *prompt)
        found[kind] = lines_of(tmp_path / "out.jsonl")[0]["generated_tokens"]
    assert all(1 <= n <= 3 for n in found.values())
    said("model=hf", f"model.path={foreign}", *prompt)
    for weights in ("mmap", "ring"):
        said(kinds["own"], *prompt, f"offload.weights={weights}")
    said(kinds["foreign"], *prompt, "offload.weights=mmap")
    shutil.move(base, tmp_path / "moved")
    said(kinds["delta"], *prompt, "model=hf", f"model.path={tmp_path}/moved")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([BASE], ["prompt and input: are not set", "give prompt=TEXT or input=FILE"]),
        ([BASE, "prompt=好", "input={place}/p.txt"], ["prompt and input: are both set"]),
        ([BASE, "prompt='  '"], ["prompt: the prompt is empty"]),
        ([BASE, "input={place}/blank.txt"], ["blank.txt, line 2: the prompt is empty"]),
        ([BASE, "input={place}/empty.txt"], ["empty.txt: holds no prompt"]),
        ([BASE, "input={place}/nothing.jsonl"], ["nothing.jsonl: no such file"]),
        ([BASE, "input={place}/rows.jsonl"], ["rows.jsonl, line 1", "no text in field 'prompt'", "promt", "generate.field="]),
        ([BASE, "input={place}/taken.jsonl"], ["taken.jsonl, line 1", "has a field 'generated'", "rename it"]),
        ([BASE, "input={place}/long.txt"], ["long.txt, line 1", "tokens with its start", "the model reads 256", "shorten it"]),
        ([BASE, "prompt=好", "generate.tempreture=1"], ["generate.tempreture", "did you mean 'temperature'"]),
        ([BASE, "prompt=好", "generate.top_k=4"], ["generate.top_k", "set temperature"]),
        ([BASE, "prompt=好", "generate.max_tokens=0"], ["generate.max_tokens: 0 is out of range"]),
        ([BASE, "prompt=好", "output={place}/out.parquet"], ["output=", "is written as .jsonl"]),
        (["checkpoint={place}/untold", "prompt=好"], ["untold: has neither tokenizer.json nor tokenizer.model", "hf download"]),
        (["checkpoint={place}", "prompt=好"], ["is not a complete artifact"]),
        (["prompt=好"], ["pretrain: not there yet", "checkpoint="]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "p.txt": "好\n",
        "blank.txt": "好\n \n",
        "empty.txt": "",
        "rows.jsonl": '{"promt": "a"}\n',
        "long.txt": "好 好吗" * 300,
    }
    files["taken.jsonl"] = '{"prompt": "a", "generated": 1}\n'
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    if "untold" in arguments[0]:
        (make_checkpoint(tmp_path / "untold", "llama") / "tokenizer.json").unlink()
    filled = [argument.format(place=tmp_path) for argument in arguments]
    refused("generate", [f"run.dir={tmp_path}/runs", *filled], words, monkeypatch, capsys)
    assert not (tmp_path / "runs").exists()
