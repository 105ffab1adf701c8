"""GGUF files: a small Llama written block by block comes back as a Hugging Face directory with the same weights and tokens."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from adapt.checkpoint.gguf_files import convert_gguf, gguf_file_of
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_model
from adapt.core.errors import CheckpointError
from adapt.core.precision import Precision
from adapt.model.continuing import greedy_tokens
from tests.support.hf_checkpoints import tokenizer_text

_HIDDEN, _FFN, _HEADS, _LAYERS = 32, 64, 4, 2


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Return weights by the names of the format, drawn once."""
    random = np.random.default_rng(0)
    vocab = len(json.loads(tokenizer_text("byte level"))["model"]["vocab"])
    shapes = {"token_embd": (vocab, _HIDDEN)}
    for layer in range(_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (_HIDDEN, _HIDDEN)
        shapes |= {f"blk.{layer}.ffn_{name}": (_FFN, _HIDDEN) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (_HIDDEN, _FFN)
    found = {f"{name}.weight": 0.3 * random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [f"blk.{layer}.{name}" for layer in range(_LAYERS) for name in ("attn_norm", "ffn_norm")] + ["output_norm"]
    return found | {f"{name}.weight": np.ones(_HIDDEN, np.float32) for name in norms}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    place = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_llama(place, weights)
    return place


def write_llama(place: Path, weights: dict[str, np.ndarray], architecture: str = "llama") -> None:
    """Write a GGUF file by the package's own writer; matrices in blocks of 8 bits."""
    model = json.loads(tokenizer_text("byte level"))["model"]
    writer = gguf.GGUFWriter(place, architecture)
    writer.add_context_length(96)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FFN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_HIDDEN // _HEADS)
    writer.add_vocab_size(len(model["vocab"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in weights.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_directory_holds_the_weights_of_the_file(file: Path, weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    convert_gguf(file, tmp_path)
    written = dict(load_model(tmp_path).named_parameters())
    found = written["causal.model.layers.1.mlp.down_proj.weight"].detach().numpy()
    wanted = weights["blk.1.ffn_down.weight"]
    assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 127  # blocks of 8 bits
    assert np.abs(found - wanted).max() > 0


def test_the_directory_continues_a_text_as_the_model_of_the_file(file: Path, tmp_path: Path) -> None:
    original = convert_gguf(file, tmp_path)
    written = load_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path, written)
    beginnings = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("电影很好看", "1 2")]
    assert greedy_tokens(original, beginnings, 8) == greedy_tokens(written, beginnings, 8)


def test_the_tokenizer_cuts_texts_as_the_file_says(file: Path, tmp_path: Path) -> None:
    convert_gguf(file, tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert [part["type"] for part in described["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]
    assert "local_files_only" not in json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_configuration_and_tensors_agree_on_the_number_format(file: Path, tmp_path: Path) -> None:
    convert_gguf(file, tmp_path, Precision.BF16)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert {weight.dtype for weight in load_model(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_an_archive_with_one_file_will_do_and_others_are_refused(file: Path, tmp_path: Path) -> None:
    archive = tmp_path / "package.whl"
    with zipfile.ZipFile(archive, "w") as whole:
        whole.write(file, "package/tiny.gguf")
    with gguf_file_of(archive) as found:
        assert found.read_bytes() == file.read_bytes()
    assert not found.exists()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    (tmp_path / "text.gguf").write_text("not one")
    for source, reason in (("empty.zip", "holds 0 .gguf"), ("missing.gguf", "no such file")):
        with pytest.raises(CheckpointError, match=reason), gguf_file_of(tmp_path / source):
            pass
    with pytest.raises(CheckpointError, match=r"text\.gguf: not a GGUF file"):
        convert_gguf(tmp_path / "text.gguf", tmp_path / "out")
