"""Tokenizers give Chinese text back exactly, cannot be talked into <mask>, and are the same for the same text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapt.core.errors import CheckpointError, ConfigError, DataError
from adapt.text.tokenizer import MODEL_FILE, Tokenizer, TokenizerConfig, _within, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DEMO_TEXT = ROOT / "pipelines" / "demo" / "corpus" / "general.txt"
CONFIG = TokenizerConfig(vocab_size=2000)
SPACED = ["the quick brown fox  jumps", " over the lazy dog ", "鱼 与 熊掌"] * 30


@pytest.fixture(scope="module")
def demo_lines() -> list[str]:
    return DEMO_TEXT.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def spaced() -> Tokenizer:
    return train_tokenizer(SPACED, TokenizerConfig(vocab_size=330), "text with spaces")


@pytest.mark.parametrize(
    "text",
    [
        "，？：（）！；“”《》、。…—",
        "ＡＢＣ１２３～％",
        "价格：３９９元，值吗？（不值）",
        "龘靐齉𠮷𪚥",
        "😀👩\u200d👩\u200d👧🇨🇳",
        "第一行\n第二行\n\n第四行\n",
        "\n",
        "\r\n\t",
        "e\u0301 é ﬁ ㎡".replace(" ", ""),
        "\u3000全角空格\u3000",
        "\x00\ufeff\u200b",
        "2023年12月31日",
        "",
    ],
)
def test_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_id not in ids


@pytest.mark.parametrize("text", [" the", "fox ", "  the   fox  ", " ", "鱼 熊掌", "a\n b"])
def test_spaces_come_back_exactly_where_the_corpus_has_some(spaced: Tokenizer, text: str) -> None:
    assert spaced.decode(spaced.encode(text)) == text


def test_the_corpus_it_was_made_from_comes_back_exactly(tokenizer: Tokenizer, demo_lines: list[str]) -> None:
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_documents(demo_lines)] == demo_lines


def test_full_width_marks_are_not_folded_into_ascii(tokenizer: Tokenizer) -> None:
    for full, ascii_mark in zip("，？：（）", ",?:()", strict=True):
        assert tokenizer.encode(full) != tokenizer.encode(ascii_mark)


def test_there_is_no_dummy_prefix(tokenizer: Tokenizer, spaced: Tokenizer) -> None:
    assert tokenizer.pieces(tokenizer.encode("好")) == ["好"]
    assert "".join(spaced.pieces(spaced.encode("the"))) == "the"


def test_the_same_word_has_the_same_tokens_at_the_start_and_inside_a_text(tokenizer: Tokenizer) -> None:
    start, inside = tokenizer.encode("体育\n"), tokenizer.encode("\n体育\n")
    assert inside[-len(start) :] == start


def test_digits_are_tokens_of_their_own() -> None:
    made = train_tokenizer([*SPACED, *["2023年1231号", "20231231"] * 50], TokenizerConfig(vocab_size=330), "dates")
    assert made.pieces(made.encode("20231231")) == list("20231231")


def test_encoding_a_batch_is_encoding_each_text(tokenizer: Tokenizer, demo_lines: list[str]) -> None:
    texts = [*demo_lines[:20], "", "😀"]
    assert tokenizer.encode_documents(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_documents([]) == []


@pytest.mark.parametrize("mark", ["<mask>", "<s>", "</s>", "<pad>", "<unk>", "<0x0A>"])
def test_no_text_can_produce_a_special_token(tokenizer: Tokenizer, mark: str) -> None:
    special = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id}
    for text in (mark, f"这是{mark}。", mark * 3):
        ids = tokenizer.encode(text)
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text


def test_training_text_full_of_marks_does_not_make_them_tokens_of_text(demo_lines: list[str]) -> None:
    made = train_tokenizer([f"<mask>{line}</s><s>" for line in demo_lines], CONFIG, "marks")
    assert not {made.mask_id, made.bos_id, made.eos_id} & set(made.encode("<mask></s><s>"))
    assert made.decode(made.encode("<mask></s><s>")) == "<mask></s><s>"


def test_special_tokens_are_five_different_ones_inside_the_vocabulary(tokenizer: Tokenizer) -> None:
    special = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]
    assert len(set(special)) == 5
    known = [token for token in special if token is not None]
    assert all(0 <= token < tokenizer.vocab_size for token in known)
    assert tokenizer.pieces(known) == ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer: Tokenizer, spaced: Tokenizer) -> None:
    assert (tokenizer.vocab_size, spaced.vocab_size) == (2400, 330)


def test_the_same_text_and_settings_give_the_same_bytes(demo_lines: list[str], tmp_path: Path) -> None:
    here = train_tokenizer(demo_lines, CONFIG, "here")
    here.save(tmp_path)
    assert train_tokenizer(iter(demo_lines), CONFIG, "again").digest == here.digest
    script = (
        "import sys; from pathlib import Path; from adapt.text.tokenizer import TokenizerConfig, train_tokenizer;"
        "lines = Path(sys.argv[1]).read_text(encoding='utf-8').splitlines();"
        "print(train_tokenizer(lines, TokenizerConfig(vocab_size=2000), 'there').digest)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(DEMO_TEXT)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here.digest


def test_other_text_gives_another_tokenizer(demo_lines: list[str]) -> None:
    assert train_tokenizer(demo_lines, CONFIG, "a").digest != train_tokenizer(demo_lines[:-20], CONFIG, "b").digest


def test_a_saved_tokenizer_is_the_same_from_its_file_and_its_directory(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for place in (tmp_path, tmp_path / MODEL_FILE):
        loaded = Tokenizer.load(place)
        assert loaded.digest == tokenizer.digest
        assert loaded.encode("这条新闻") == tokenizer.encode("这条新闻")


def test_too_large_a_vocabulary_is_refused_with_a_hint(demo_lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(demo_lines, TokenizerConfig(vocab_size=100_000), "tiny corpus")
    message = str(caught.value)
    assert message.startswith("tiny corpus: cannot train a vocabulary of 100000")
    assert "change tokenizer.vocab_size or give more text" in message
    assert "\n" not in message


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"]])
def test_no_text_at_all_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="nothing: cannot train.*give more text"):
        train_tokenizer(texts, CONFIG, "nothing")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100, "文本".encode()])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / MODEL_FILE
    place.write_bytes(content)
    with pytest.raises(CheckpointError, match=MODEL_FILE):
        Tokenizer.load(place)


def test_a_missing_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere.model"):
        with pytest.raises(CheckpointError, match="no such tokenizer"):
            Tokenizer.load(place)


def test_a_mistake_in_the_corpus_comes_through_as_it_is() -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise DataError("a.jsonl, line 2: not valid JSON")

    with pytest.raises(DataError, match="line 2"):
        train_tokenizer(texts(), CONFIG, "here")


def test_a_budget_takes_fewer_lines_from_all_over_and_says_what_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{number:010d}" for number in range(1000)]
    with caplog.at_level("INFO"):
        assert _within(lines, 3000, None) is lines
        some = _within(lines, 3000, 1e-9 * 85 * 2505)
    assert len(some) == 250 and some == sorted(some) and some == _within(lines, 3000, 1e-9 * 85 * 2505)
    assert 60 < sum(line < lines[300] for line in some) < 90
    assert "training on 250 of 3,000 lines, 2,500 characters" in caplog.text
    with pytest.raises(ConfigError, match=r"memory_gb: 0\.0 is out of range"):
        TokenizerConfig(memory_gb=0.0)
