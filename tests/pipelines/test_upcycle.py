"""`python -m pipelines.upcycle`: what it says, what it refuses, and that a failure leaves what was there."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.checkpoint.weights import load_config, load_model
from adapt.core.errors import CheckpointError
from adapt.text.tokenizer import Tokenizer
from pipelines.command_line.plain_options import run_plainly
from pipelines.config.locations import demo_dir
from pipelines.tools.upcycle import UpcycleConfig, upcycle
from tests.support.dense_checkpoints import make_dense
from tests.support.hf_checkpoints import make_checkpoint


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["upcycle", *words])
    code = run_plainly(UpcycleConfig, upcycle, "usage")
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_command_makes_a_checkpoint_and_says_that_answers_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = make_dense(tmp_path / "dense"), tmp_path / "sparse"
    words = [f"source={source}", f"output={output}", "experts=[0,4]", "router.name=sigmoid_bias", "router.experts_per_token=3"]
    code, text = typed([*words, "is_residual=true"], monkeypatch, capsys)
    assert code == 0, text
    assert "largest difference of logits" in text and "weights of" in text
    config = load_config(output)
    assert config.expert_counts() == (0, 0, 0, 4) and config.is_residual
    assert config.router.name == "sigmoid_bias" and load_model(output).router_traits.experts_per_token == 3
    assert Tokenizer.load(output).vocab_size == config.vocab_size
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    before = (output / "config.json").read_bytes()
    code, text = typed(words, monkeypatch, capsys)
    assert code == 2 and "set force=true" in text
    code, text = typed([*words, "force=true", "experts_per_token=2"], monkeypatch, capsys)
    assert code == 2 and "experts_per_token: is for Hugging Face models" in text
    assert (output / "config.json").read_bytes() == before
    code, text = typed([*words[:2], "force=true", "experts=2"], monkeypatch, capsys)
    assert code == 0 and load_config(output).expert_counts() == (0, 2, 0, 2), text


def test_a_hugging_face_base_becomes_its_sparse_sibling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_checkpoint(tmp_path / "dense", "qwen3")
    words = [f"source={source}", f"output={tmp_path}/sparse", "experts=4"]
    code, text = typed([*words, "layers=1", "noise=0.02"], monkeypatch, capsys)
    assert code == 0, text
    assert "qwen3_moe with 4 experts in 1 layers, 2 a token" in text
    assert load_model(tmp_path / "sparse").expert_counts == (4,)
    code, text = typed([*words, "router.name=top1", "force=true"], monkeypatch, capsys)
    assert code == 2 and text.count("\n") == 1 and "router: is for models of this project" in text


def test_a_result_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_dense(tmp_path / "dense")
    from adapt.checkpoint.upcycling import own

    monkeypatch.setattr(own, "scaled", lambda source, factor, name: source * 1.001)
    with pytest.raises(CheckpointError, match="does not answer as"):
        upcycle(UpcycleConfig(source=str(source), output=str(tmp_path / "sparse")))
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["source=nowhere", "output=new"], "nowhere: no such directory; source= takes"),
        ([f"source={demo_dir()}/base", "output=new"], "is sparse already"),
        (["source=a", "output=new", "experts=many"], "experts: expected a list"),
        (["source=a", "output=new", "expert=4"], "expert: unknown key (did you mean 'experts'?)"),
        (["source=a", "output=new", "router.name=top3"], "router.name: unknown 'top3'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = typed(words, monkeypatch, capsys)
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1 and said in text, text
    assert not list(tmp_path.iterdir())
