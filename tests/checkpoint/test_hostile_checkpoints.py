"""Checkpoint directories from elsewhere: none runs code, leads outside itself, or has sizes believed before they are checked."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from adapt.checkpoint.store import open_store
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_config, load_model, save_model
from adapt.core.errors import AdaptError
from adapt.model.gpt import GPT
from adapt.model.hf import refuse_code
from adapt.text.hf_tokenizer import HFTokenizer
from adapt.text.tokenizer import Tokenizer
from tests.support.hf_checkpoints import BYTE_LEVEL, METASPACE, make_checkpoint, tokenizer_text

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ALLOWED_S = 20.0
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("foreign") / "base", "qwen3_moe", BYTE_LEVEL)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, sparse_model: GPT, tokenizer: Tokenizer) -> Path:
    place = tmp_path_factory.mktemp("own") / "base"
    place.mkdir()
    save_model(place, sparse_model.config, sparse_model.named_parameters(), tokenizer)
    return place


def setting(file: str, **changes: Any) -> Damage:
    def change(place: Path) -> None:
        content = json.loads((place / file).read_text(encoding="utf-8"))
        (place / file).write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return change


def writing(file: str, content: str | bytes) -> Damage:
    def change(place: Path) -> None:
        (place / file).unlink(missing_ok=True)
        (place / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def linking(file: str, target: str) -> Damage:
    def change(place: Path) -> None:
        (place.parent / "outside").write_bytes((place / file).read_bytes() if (place / file).is_file() else b"secret")
        (place / file).unlink(missing_ok=True)
        (place / file).symlink_to(target)

    return change


def pickled_only(place: Path) -> None:
    torch.save({}, place / "pytorch_model.bin")
    (place / SINGLE).unlink()


def shard(header: object, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(shape: list[object], begin: object = 0, end: object = 0, dtype: object = "F32") -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


def refused(action: Callable[[], object], words: str) -> None:
    started = time.monotonic()
    with pytest.raises(AdaptError) as raised:
        action()
    assert words in str(raised.value) and str(raised.value).isprintable(), str(raised.value)
    assert time.monotonic() - started < ALLOWED_S


def naming(shard_name: str) -> Damage:
    """Give a directory an index that names one shard, and put the weights where `../model.safetensors` would find them."""

    def change(place: Path) -> None:
        (place / SINGLE).rename(place.parent / SINGLE)
        writing(INDEX, json.dumps({"weight_map": {"w": shard_name}}))(place)

    return change


CODE = {"AutoConfig": "evil.Config"}
FOREIGN: dict[str, tuple[Damage, str]] = {
    "code of the model": (setting(CONFIG, auto_map=CODE), "auto_map"),
    "code of a part": (setting(CONFIG, text_config={"auto_map": CODE}), "auto_map"),
    "code of the tokenizer": (setting("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}), "auto_map"),
    "kernels of another place": (setting(CONFIG, _attn_implementation="somebody/kernel"), "kernels"),
    "kernels for experts": (setting(CONFIG, experts_implementation="somebody/kernel:go"), "kernels"),
    "an adapter's base": (writing("adapter_config.json", '{"base_model_name_or_path": "../other"}'), "an adapter"),
    "a shard above": (naming("../model.safetensors"), "no file of its directory"),
    "a shard of the root": (naming("/etc/passwd"), "no file of its directory"),
    "a shard called ..": (naming(".."), "no file of its directory"),
    "a sum of another file": (writing(INDEX, '{"weight_map": {"w": "x"}, "files": {"../x": {"size": 1, "sha256": ""}}}'), "'../x'"),
    "two sets": (writing(INDEX, '{"weight_map": {"w": "model.safetensors"}}'), "two sets"),
    "a pickle": (pickled_only, "pickled"),
    "linked weights": (linking(SINGLE, "../outside"), "leads out"),
    "a linked tokenizer": (linking("merges.txt", "../outside"), "leads out"),
    "a linked configuration": (linking(CONFIG, "../outside"), "leads out"),
    "wide": (setting(CONFIG, hidden_size=10**9), "weights"),
    "many words": (setting(CONFIG, vocab_size=10**12), "weights"),
    "deep": (setting(CONFIG, num_hidden_layers=10**9), "num_hidden_layers"),
    "many experts": (setting(CONFIG, num_experts=10**9), "num_experts"),
    "wide experts": (setting(CONFIG, moe_intermediate_size=10**9), "weights"),
    "beyond any number": (setting(CONFIG, hidden_size=10**40), "hidden_size"),
    "a nested configuration": (writing("tokenizer_config.json", "[" * 100_000), "nested"),
    "a header of 2^63": (writing(SINGLE, struct.pack("<Q", 1 << 63)), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_hostile_hugging_face_directory_is_one_line(name: str, foreign: Path, tmp_path: Path) -> None:
    damage, words = FOREIGN[name]
    place = Path(shutil.copytree(foreign, tmp_path / "base"))
    damage(place)
    refused(lambda: load_model(place), words)


def test_links_of_the_hugging_face_cache_are_followed(foreign: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(foreign, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    refuse_code(snapshot)
    load_tokenizer(snapshot, load_model(snapshot))


def only_layers(place: Path) -> None:
    setting(CONFIG, n_layers=9_999)(place)
    index = json.loads((place / INDEX).read_text(encoding="utf-8"))
    (place / INDEX).write_text(json.dumps({**index, "files": {}}), encoding="utf-8")


OWN: dict[str, tuple[Damage, str]] = {
    "wide": (setting(CONFIG, hidden_size=10**9), "hidden_size"),
    "deep": (setting(CONFIG, n_layers=10**9), "n_layers"),
    "deeper than its tensors": (only_layers, "9999 layers"),
    "beyond any number": (setting(CONFIG, vocab_size=10**300), "vocab_size"),
    "many experts": (setting(CONFIG, experts=[10**9]), "experts"),
    "two sets": (writing(SINGLE, shard(entry([0]))), "two sets"),
    "linked weights": (linking("model-00001.safetensors", "../outside"), "leads out"),
    "a linked tokenizer": (linking("tokenizer.model", "../outside"), "leads out"),
    "a linked license": (linking("tokenizer_config.json", "/etc/passwd"), "leads out"),
    "a nested index": (writing(INDEX, "[" * 100_000), "nested"),
    "an index with half a pair": (writing(INDEX, '{"weight_map": {"w": "\\ud83d"}}'), "surrogate"),
    "a shard with an escape": (writing(INDEX, '{"weight_map": {"w": "\\u001b[31m"}}'), "no file of its directory"),
    "another tokenizer than recorded": (writing("tokenizer.model", b"\n"), "not the bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_hostile_checkpoint_of_this_projects_form_is_one_line(name: str, own: Path, tmp_path: Path) -> None:
    damage, words = OWN[name]
    place = Path(shutil.copytree(own, tmp_path / "base"))
    damage(place)
    refused(lambda: load_model(place), words)


HEADERS: dict[str, bytes] = {
    "2^63": struct.pack("<Q", 1 << 63),
    "2^64 - 1": b"\xff" * 8 + b"{}",
    "nested": shard(b"[" * 100_000),
    "nested names": shard(b'{"w":' * 50_000),
    "infinite offsets": shard(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'),
    "infinite sizes": shard(b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,0]}}'),
    "twice negative": shard(entry([-2, -2], 0, 16)) + b"\0" * 16,
    "an empty tensor of 2^64 rows": shard(entry([0, 1 << 64])),
    "a thousand axes": shard(entry([1] * 1000, 0, 4)) + b"\0" * 4,
    "a type that is a list": shard(entry([1], 0, 4, ["F32"])) + b"\0" * 4,
    "half a pair": shard(b'{"\\ud83d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
    "a number of 5000 digits": shard(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'),
    "petabytes": shard(entry([1 << 40, 1 << 10], 0, 1 << 52)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(HEADERS[name])
    refused(lambda: list(open_store(tmp_path)), "damaged")


def test_sizes_are_checked_where_only_the_configuration_is_read(own: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(own, tmp_path / "base"))
    setting(CONFIG, n_layers=10**12, experts=[2])(place)
    refused(lambda: load_config(place), "n_layers")


MARKS = ("<s>", "</s>", "<pad>", "<mask>", "[MASK]", "[CLS]", "<|endoftext|>", "<|im_start|>", "<unk>", "<0x0A>")


@pytest.mark.parametrize("kind", ["sentencepiece", BYTE_LEVEL, METASPACE])
def test_marks_that_are_typed_stay_text(kind: str, tokenizer: Tokenizer) -> None:
    settings = json.dumps({"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"} if kind == METASPACE else {})
    files = {"tokenizer_config.json": settings.encode()}
    if kind != "sentencepiece":
        files["tokenizer.json"] = tokenizer_text(kind).encode()
    opened = tokenizer if kind == "sentencepiece" else HFTokenizer(files, {}, "t")
    marks = {opened.bos_id, opened.eos_id, opened.pad_id, opened.mask_id}
    for mark in MARKS:
        ids = opened.encode(f"好{mark}吃")
        assert not marks & set(ids) and opened.decode(ids) == f"好{mark}吃", mark


@pytest.mark.parametrize("role", ["bos", "eos", "mask", "pad"])
def test_marks_that_a_file_calls_plain_added_tokens_stay_text(role: str) -> None:
    described = json.loads(tokenizer_text(BYTE_LEVEL))
    number = 1 + max(described["model"]["vocab"].values())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    described["added_tokens"].append({"id": number, "content": "[GO]", **plain})
    settings = json.dumps({"eos_token": "<|endoftext|>", f"{role}_token": "[GO]"}).encode()
    files = {"tokenizer.json": json.dumps(described).encode(), "tokenizer_config.json": settings}
    opened = HFTokenizer(files, {}, "t", is_recorded=True)
    assert getattr(opened, f"{role}_id") == number
    assert number not in opened.encode("a [GO] b") and opened.decode(opened.encode("a [GO] b")) == "a [GO] b"
    whole = HFTokenizer(files, {}, "t")  # encodes texts as one
    assert whole.whole is not None
    assert number not in [*whole.whole(["a [GO] b"])[0].ids, *whole.encode_documents(["a [GO] b"])[0]]


def test_a_sentencepiece_mask_that_texts_can_spell_is_refused(tmp_path: Path) -> None:
    lines = iter(["一二三四五六七八九十 abc def"] * 200)
    with (tmp_path / "m.model").open("wb") as target:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=target, vocab_size=300, model_type="bpe", byte_fallback=True,
            user_defined_symbols=["<mask>"], add_dummy_prefix=False, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    refused(lambda: Tokenizer.load(tmp_path / "m.model"), "<mask>")
