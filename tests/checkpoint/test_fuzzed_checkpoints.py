"""Manifests, indexes, shards, configurations and tokenizers by the thousand: the bytes that were written, or one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from adapt.checkpoint.offload import Verify
from adapt.checkpoint.store import open_store
from adapt.checkpoint.store_writer import write_tensors
from adapt.checkpoint.weights import load_config
from adapt.core.artifacts import MANIFEST, ArtifactStore, StageKey, open_artifact
from adapt.core.json_files import write_json
from adapt.model.config import GPTConfig
from adapt.model.hf import refuse_code
from adapt.text.hf_tokenizer import HFTokenizer
from tests.support.fuzzing import accepted, damaged, distorted, fuzz
from tests.support.hf_checkpoints import BYTE_LEVEL, tokenizer_text

INDEX = "model.safetensors.index.json"
SHARES = {"manifest": 4_000, "index": 4_000, "shard": 4_000, "config": 4_000, "foreign config": 3_000, "tokenizer": 1_000}
assert sum(SHARES.values()) == 20_000


def both(content: Any) -> st.SearchStrategy[bytes]:
    """Draw a JSON file as it is, with damaged bytes, or with a distorted value."""
    return (
        st.just(json.dumps(content).encode())
        | damaged(json.dumps(content).encode())
        | distorted(content).map(lambda value: json.dumps(value).encode())
    )


def manifest(place: Path, count: int) -> int:
    store = ArtifactStore(place / "runs")

    def build(result: Path, work: Path) -> dict[str, int]:
        (result / "a.txt").write_text("a", encoding="utf-8")
        return {"n": 1}

    made = store.produce(StageKey(stage="s", config={"x": 1}), build, force=False, created=lambda: "now")[0].path
    (place / "outside").write_text("a", encoding="utf-8")
    content = json.loads((made / MANIFEST).read_text(encoding="utf-8"))

    def check(raw: bytes) -> bool:
        (made / MANIFEST).write_bytes(raw)
        return accepted(lambda: open_artifact(made))

    return fuzz(both(content), check, count)


def stored(place: Path) -> dict[str, torch.Tensor]:
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int64), "c": torch.zeros(())}
    write_tensors(place, tensors.items())
    return tensors


def same_or_refused(place: Path, file: Path, tensors: dict[str, torch.Tensor]) -> Callable[[bytes], bool]:
    def check(raw: bytes) -> bool:
        file.write_bytes(raw)

        def go() -> None:
            for name, found in open_store(place, Verify.ALWAYS):
                assert torch.equal(found, tensors[name]) and found.dtype == tensors[name].dtype

        return accepted(go)

    return check


def index(place: Path, count: int) -> int:
    tensors = stored(place)
    content = json.loads((place / INDEX).read_text(encoding="utf-8"))
    return fuzz(both(content), same_or_refused(place, place / INDEX, tensors), count)


def shard(place: Path, count: int) -> int:
    tensors = stored(place)
    file = next(place.glob("*.safetensors"))
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])

    def as_shard(content: Any) -> bytes:
        text = json.dumps(content, separators=(",", ":")).encode().ljust(length)
        return len(text).to_bytes(8, "little") + text + raw[8 + length :]

    lengths = st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + raw[8:])
    start = damaged(raw[: 8 + length]).map(lambda damage: damage + raw[8 + length :])
    return fuzz(st.just(raw) | distorted(header).map(as_shard) | start | lengths, same_or_refused(place, file, tensors), count)


def config(place: Path, count: int) -> int:
    sizes = GPTConfig(n_layers=4, hidden_size=32, n_heads=4, context_length=16, vocab_size=100, experts=[2])
    write_json(place / "config.json", sizes)
    content = json.loads((place / "config.json").read_text(encoding="utf-8"))

    def check(raw: bytes) -> bool:
        (place / "config.json").write_bytes(raw)
        return accepted(lambda: load_config(place).expert_counts())

    return fuzz(both(content), check, count)


def foreign_config(place: Path, count: int) -> int:
    content = {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2, "rope_scaling": {"rope_type": "default"}}

    def check(raw: bytes) -> bool:
        (place / "config.json").write_bytes(raw)
        return accepted(lambda: refuse_code(place))

    return fuzz(both(content), check, count)


def tokenizer(place: Path, count: int) -> int:
    described = json.loads(tokenizer_text(BYTE_LEVEL, 300))
    settings = {"eos_token": "<|endoftext|>", "bos_token": {"content": "<|endoftext|>"}, "pad_token": None}

    def check(files: tuple[Any, Any]) -> bool:
        raw = {"tokenizer.json": json.dumps(files[0]).encode(), "tokenizer_config.json": json.dumps(files[1]).encode()}

        def go() -> None:
            opened = HFTokenizer(raw, {}, "t")
            assert not {opened.bos_id, opened.eos_id} & set(opened.encode("好 a <|endoftext|>"))

        return accepted(go)

    few = {**described, "model": {**described["model"], "merges": described["model"]["merges"][:3]}}
    return fuzz(st.tuples(distorted(few), st.just(settings)) | st.tuples(st.just(described), distorted(settings)), check, count)


RUNS: dict[str, Callable[[Path, int], int]] = {
    "manifest": manifest, "index": index, "shard": shard, "config": config, "foreign config": foreign_config,
    "tokenizer": tokenizer,
}  # fmt: skip


@pytest.mark.parametrize("what", SHARES)
def test_files_of_checkpoints_are_right_or_one_line(what: str, tmp_path: Path) -> None:
    assert RUNS[what](tmp_path, 25) > 0


@pytest.mark.slow
@pytest.mark.parametrize("what", SHARES)
def test_many_files_of_checkpoints_are_right_or_one_line(what: str, tmp_path: Path) -> None:
    assert RUNS[what](tmp_path, SHARES[what]) > 0
