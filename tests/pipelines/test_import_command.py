"""`import_checkpoint` and `verify` as commands: an artifact that every stage can read, and nothing written after a mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import adapt.text.tokenizer
from adapt.core.artifacts import open_artifact
from adapt.text.tokenizer import MODEL_FILE, Tokenizer
from pipelines.command_line.plain_options import run_plainly
from pipelines.tools import verify
from pipelines.tools.verify import VerifyConfig
from tests.support.command_line import SMALL_DEMO, refused, run_inside
from tests.support.foreign_checkpoints import (
    Foreign,
    Weights,
    ids_of,
    make_weights,
    reference_logits,
    write_megatron,
    write_pai,
)
from tests.support.hf_checkpoints import BYTE_LEVEL, METASPACE, tokenizer_text
from tests.support.tiny_models import DEMO

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
RunHere = Callable[[str, list[str]], str]
CASE = Foreign(experts=(3, 4), is_residual=True, has_network=True)
# Large enough for the prompts of the demo tasks, and a vocabulary for the tokenizer of the tests.
WORDY = Foreign(experts=(3,), n_layers=2, hidden=12, ffn=48, vocab_rows=2432, positions=96)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    weights = make_weights(CASE)
    return write_pai(tmp_path_factory.mktemp("theirs"), CASE, weights, is_lsoftmax=True), weights


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_megatron(tmp_path_factory.mktemp("wordy"), WORDY, make_weights(WORDY))


def imports(source: Path, place: Path, *more: str, importer: str = "pai_gpt_moe") -> list[str]:
    return [f"importer={importer}", f"source={source}", "run.name=mine", f"run.dir={place}/runs", *more]


def verified(words: list[str], monkeypatch: Patch, capsys: Capture) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["pipelines.verify", *words])
    code = run_plainly(VerifyConfig, verify.main, verify.__doc__ or "")
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_an_import_is_an_artifact_with_a_report(source: tuple[Path, Weights], tmp_path: Path, run_here: RunHere) -> None:
    said = run_here("import_checkpoint", imports(source[0], tmp_path))
    artifact = open_artifact((tmp_path / "runs" / "mine" / "import_checkpoint").resolve())
    report = artifact.metrics["report"]
    assert f"{report['read']} tensors read from 8 files" in said
    assert report["read"] == report["mapped"] + sum(report["unused"].values())
    assert (report["missing"], report["left_over"], report["vocabulary_rows_dropped"]) == (0, 0, 0)
    assert report["notes"]["settings"]["num_experts"] == [3, 4]
    assert artifact.config["importer"] == "pai_gpt_moe"
    assert artifact.config["model"]["expert_residual_layers"] == 6
    assert artifact.metrics["tokenizer"] == "none"
    assert "unchanged, skipped" in run_here("import_checkpoint", imports(source[0], tmp_path))
    assert not list(tmp_path.glob("runs/store/import_checkpoint/.*.work"))


def test_another_source_is_another_artifact(source: tuple[Path, Weights], tmp_path: Path, run_here: RunHere) -> None:
    run_here("import_checkpoint", imports(source[0], tmp_path))
    other = write_pai(tmp_path / "other", CASE, make_weights(CASE, seed=1))
    assert "unchanged" not in run_here("import_checkpoint", imports(other, tmp_path))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "layernorm_epsilon": 1e-6}), encoding="utf-8")
    assert "unchanged" not in run_here("import_checkpoint", imports(other, tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["importer=pai_gpt_mo"], ["unknown importer 'pai_gpt_mo'", "'pai_gpt_moe'"]),
        (["importer=null"], ["no importer given", "megatron_deepspeed, pai_gpt_moe"]),
        (["source=null"], ["no source given"]),
        (["source=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["import_checkpoint.drop_tokens=true"], ["import_checkpoint.drop_tokens", "at random"]),
        (["import_checkpoint.residual_axis=three"], ["import_checkpoint.residual_axis", "two, batch"]),
        (["import_checkpoint.residual_axis=batch"], ["cannot be imported exactly"]),
        (["import_checkpoint.vocab_size=71"], ["70 rows", "vocabulary of 71"]),
        (["importer=megatron_deepspeed"], ["holds none of"]),
        (["tokenizer=/nowhere/tokenizer.model"], ["/nowhere/tokenizer.model", "no such tokenizer"]),
        (["import_checkpoint.tokeniser=x"], ["unknown key", "'tokenizer'"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], said: list[str], source: tuple[Path, Weights], tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    refused("import_checkpoint", [*imports(source[0], tmp_path), *words], said, monkeypatch, capsys)
    assert not [place for place in tmp_path.rglob("*") if place.is_file() and not place.name.endswith(".lock")]


def test_damage_that_shows_while_weights_are_read_leaves_nothing(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    place = write_pai(tmp_path / "theirs", CASE, make_weights(CASE))
    file = place / "model" / "layer_1_expert_3_mp_rank_00_model_states.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    refused("import_checkpoint", imports(place, tmp_path), [file.name, "Bad CRC-32"], monkeypatch, capsys)
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    assert not list((tmp_path / "runs").rglob("manifest.json"))


def test_a_checkpoint_with_its_tokenizer_labels_rows(wordy: Path, tokenizer: Tokenizer, tmp_path: Path, run_here: RunHere) -> None:
    tokenizer.save(tmp_path)
    words = imports(wordy, tmp_path, f"tokenizer={tmp_path / MODEL_FILE}", importer="megatron_deepspeed")
    assert "with its tokenizer" in run_here("import_checkpoint", words)
    base = tmp_path / "runs" / "mine" / "import_checkpoint"
    artifact = open_artifact(base.resolve())
    assert artifact.metrics["report"]["vocabulary_rows_dropped"] == WORDY.vocab_rows - tokenizer.vocab_size
    assert artifact.metrics["tokenizer"]["keeps_text_exactly"] is True
    run_here(
        "pseudo_label",
        [
            "experiment=demo_from_scratch", f"data.root={SMALL_DEMO}", "task=demo_reviews", f"checkpoint={base}", "run.name=demo",
            f"run.dir={tmp_path}/runs", "pseudo_label.max_rows=8", "pseudo_label.collapse_limit=1.0",
            "pseudo_label.estimates_noise=false",
        ],
    )  # fmt: skip
    labels = open_artifact((tmp_path / "runs" / "demo" / "pseudo_label" / "demo_reviews").resolve())
    assert labels.inputs["base"].digest == artifact.digest


def test_a_checkpoint_with_a_tokenizer_json_can_be_adapted(tmp_path: Path, run_here: RunHere) -> None:
    place = tmp_path / "tokenizer"
    place.mkdir()
    (place / "tokenizer.json").write_text(tokenizer_text(BYTE_LEVEL), encoding="utf-8")
    (place / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}', encoding="utf-8")
    size = len(json.loads(tokenizer_text(BYTE_LEVEL))["model"]["vocab"])
    case = Foreign(experts=(3,), n_layers=2, hidden=12, ffn=48, vocab_rows=size, positions=96)
    theirs = write_pai(tmp_path / "theirs", case, make_weights(case).to(torch.float16))
    run_here("import_checkpoint", imports(theirs, tmp_path, f"tokenizer={place / 'tokenizer.json'}"))
    words = [
        "experiment=demo_from_scratch", f"data.root={SMALL_DEMO}", "task=demo_reviews",
        f"checkpoint={tmp_path}/runs/mine/import_checkpoint", "run.name=demo", f"run.dir={tmp_path}/runs",
        "pseudo_label.max_rows=12", "pseudo_label.collapse_limit=1.0", "pseudo_label.teachers=[model]", "evaluate.fit_rows=8",
        "pseudo_label.estimates_noise=false", "continue_pretrain.epochs=1", "evaluate.methods=[raw]", "evaluate.method=raw",
        "split=dev", "stages=[pseudo_label,continue_pretrain,evaluate,export]",
    ]  # fmt: skip
    run_here("run", words)
    export = (tmp_path / "runs" / "demo" / "export" / "demo_reviews").resolve()
    assert {"tokenizer.json", "tokenizer_config.json"} <= {file.name for file in export.iterdir()}
    rows = DEMO / "clue" / "demo_reviews" / "dev.json"
    assert "60 rows" in run_here("predict", [f"checkpoint={export}", f"input={rows}", f"run.dir={tmp_path}/runs"])


def test_labelling_without_a_tokenizer_is_refused(
    source: tuple[Path, Weights], tmp_path: Path, run_here: RunHere, monkeypatch: Patch, capsys: Capture
) -> None:
    run_here("import_checkpoint", imports(source[0], tmp_path))
    base = tmp_path / "runs" / "mine" / "import_checkpoint"
    words = ["experiment=demo_from_scratch", "task=demo_reviews", f"checkpoint={base}", f"run.dir={tmp_path}/runs"]
    monkeypatch.setattr("adapt.checkpoint.open_checkpoint.load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    for stage in ("pseudo_label", "evaluate"):
        refused(stage, words, ["has no tokenizer", "import_checkpoint.tokenizer=FILE"], monkeypatch, capsys)


@pytest.mark.parametrize("kind", ["another size", "no model", "no json", "loses text", "a space before"])
def test_a_tokenizer_of_another_model_is_refused(
    kind: str, wordy: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    place = tmp_path / MODEL_FILE
    place.write_bytes(b"no model")
    said = {
        "another size": ["import_checkpoint.vocab_size", "2000"],
        "no model": ["not a SentencePiece model"],
        "no json": ["not valid JSON"],
        "loses text": ["does not give Chinese text back"],
        "a space before": ["puts a space before every text"],
    }[kind]
    more = []
    if kind == "another size":
        tokenizer.save(tmp_path)
        more = ["import_checkpoint.vocab_size=2000"]
    elif kind == "no json":
        place = tmp_path / "tokenizer.json"
        place.write_text("{", encoding="utf-8")
    elif kind in ("loses text", "a space before"):
        place.write_bytes(plain_sentencepiece(add_dummy_prefix=kind == "a space before"))
    words = imports(wordy, tmp_path, f"import_checkpoint.tokenizer={place}", *more, importer="megatron_deepspeed")
    refused("import_checkpoint", words, said, monkeypatch, capsys)
    assert not list(tmp_path.rglob("*.safetensors"))


def plain_sentencepiece(add_dummy_prefix: bool) -> bytes:
    """Return a SentencePiece model of a few Latin words."""
    import io

    made = io.BytesIO()
    adapt.text.tokenizer.sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c the of"] * 50), model_writer=made, vocab_size=20, model_type="bpe",
        add_dummy_prefix=add_dummy_prefix, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


def test_a_metaspace_tokenizer_is_taken_as_it_continues_text(tmp_path: Path, run_here: RunHere) -> None:
    place = tmp_path / "tokenizer.json"
    place.write_text(tokenizer_text(METASPACE), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}', encoding="utf-8")
    size = len(json.loads(tokenizer_text(METASPACE))["model"]["vocab"])
    case = Foreign(experts=(1,), n_layers=2, hidden=12, ffn=48, vocab_rows=size)
    theirs = write_pai(tmp_path / "theirs", case, make_weights(case))
    assert "with its tokenizer" in run_here("import_checkpoint", imports(theirs, tmp_path, f"tokenizer={place}"))


@pytest.fixture(scope="module")
def imported(source: tuple[Path, Weights], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an imported checkpoint, which tests read."""
    place = tmp_path_factory.mktemp("imported")
    done = run_inside("import_checkpoint", *imports(source[0], place))
    assert done.returncode == 0, done.stderr
    return place / "runs" / "mine" / "import_checkpoint"


@pytest.fixture
def compared(source: tuple[Path, Weights], tmp_path: Path) -> Path:
    """Return a directory with token ids, and the logits that a plain reference gives them."""
    ids_BT = ids_of(CASE, CASE.vocab_rows)
    np.save(tmp_path / "ids.npy", ids_BT.numpy())
    np.save(tmp_path / "expected.npy", reference_logits(CASE, source[1], ids_BT).numpy())
    return tmp_path


def asks(imported: Path, place: Path, **changes: object) -> list[str]:
    words = {
        "checkpoint": imported,
        "tokens": place / "ids.npy",
        "logits": place / "expected.npy",
        **changes,
    }
    return [f"{key}={value}" for key, value in words.items()]


def test_equal_logits_end_with_0(imported: Path, compared: Path, monkeypatch: Patch, capsys: Capture) -> None:
    code, text = verified(asks(imported, compared, tolerance="2e-5"), monkeypatch, capsys)
    assert code == 0, text
    assert "max difference" in text
    assert "equal within 2e-05" in text
    np.save(compared / "one.npy", np.load(compared / "ids.npy")[0])
    np.save(compared / "first.npy", np.load(compared / "expected.npy")[0])
    assert (
        verified(asks(imported, compared, tokens=compared / "one.npy", logits=compared / "first.npy"), monkeypatch, capsys)[0] == 0
    )


@pytest.mark.parametrize("wrong", [1.0, float("nan"), float("inf")])
def test_the_first_difference_is_named_and_ends_with_1(
    wrong: float, imported: Path, compared: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    expected = np.load(compared / "expected.npy")
    expected[1, 4, 9] += wrong
    expected[1, 5, 2] += 30
    np.save(compared / "expected.npy", expected)
    code, text = verified(asks(imported, compared), monkeypatch, capsys)
    assert code == 1, text
    assert "first difference beyond 0.0001: row 1, position 4, token 9: expected" in text
    largest = "row 1, position 5, token 2" if wrong == 1.0 else "row 1, position 4, token 9"
    assert f"at {largest}, of 2,800 logits" in text
    assert "2 of 2,800 logits" in text
    assert verified(asks(imported, compared, tolerance="1e3"), monkeypatch, capsys)[0] == (0 if wrong == 1.0 else 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": "/nowhere/at/all"}, "/nowhere/at/all: no such directory"),
        ({"tokens": "/nowhere/ids.npy"}, "/nowhere/ids.npy: no such file"),
        ({"tokens": "{tmp}/text.npy"}, "text.npy: not an array saved by numpy"),
        ({"tokens": "{tmp}/objects.npy"}, "objects.npy: not an array saved by numpy"),
        ({"tokens": "{tmp}/expected.npy"}, "expected.npy: has 3 dimensions"),
        ({"tokens": "{tmp}/floats.npy"}, "float64, not whole numbers"),
        ({"tokens": "{tmp}/high.npy"}, "the model's from 0 to 69"),
        ({"tokens": "{tmp}/short.npy"}, "rows and positions differ"),
        ({"tokens": "{tmp}/long.npy", "logits": "{tmp}/long_logits.npy"}, "has 21 positions, the model takes 20"),
        ({"logits": "{tmp}/narrow.npy"}, "vocabulary of 60, the model's is 70"),
        ({"logits": "{tmp}/ids.npy"}, "not floating-point numbers"),
        ({"tolerance": "-1"}, "tolerance: -1.0"),
        ({"tolerance": "little"}, "tolerance: expected float"),
        ({"tolerence": "1"}, "unknown key (did you mean 'tolerance'?)"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(
    changes: dict[str, str], said: str, imported: Path, compared: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    ids, expected = np.load(compared / "ids.npy"), np.load(compared / "expected.npy")
    (compared / "text.npy").write_text("hello", encoding="utf-8")
    np.save(compared / "objects.npy", np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(compared / "floats.npy", ids + 0.5)
    np.save(compared / "high.npy", ids + 70)
    np.save(compared / "short.npy", ids[:1])
    np.save(compared / "long.npy", np.zeros((2, 21), np.int64))
    np.save(compared / "long_logits.npy", np.zeros((2, 21, 70), np.float32))
    np.save(compared / "narrow.npy", expected[..., :60])
    code, text = verified(
        asks(imported, compared, **{k: v.replace("{tmp}", str(compared)) for k, v in changes.items()}), monkeypatch, capsys
    )
    assert code == 2, text
    assert len(text.splitlines()) == 1
    assert text.startswith("error: ")
    assert said in text


def test_a_base_of_this_project_can_be_verified(smallest_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    np.save(tmp_path / "ids.npy", np.ones((1, 4), np.int64))
    np.save(tmp_path / "expected.npy", np.zeros((1, 4, 2400), np.float32))
    code, text = verified(asks(smallest_run / "pretrain", tmp_path), monkeypatch, capsys)
    assert code == 1, text
    assert "checkpoint  " in verified(["--help"], monkeypatch, capsys)[1]
