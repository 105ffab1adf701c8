"""The corpus's filters on planted text, and against slower ways of saying the same."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.core.errors import DataError
from adapt.text.cleaning.characters import Batch, Sign, folded
from adapt.text.cleaning.config import (
    CorpusConfig,
    Language,
    NormaliseConfig,
    OverlapConfig,
    Personal,
    QualityConfig,
    Script,
    UnicodeForm,
)
from adapt.text.cleaning.normalising import normalised
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.cleaning.personal_data import is_card_number, is_id_number, masked
from adapt.text.cleaning.quality import is_wrongly_decoded, verdicts, without_boilerplate
from adapt.text.cleaning.sieve import OVERLAP, Sieve, Tally
from adapt.text.corpus import Document, find_corpus, read_documents
from adapt.text.shards import ShardWriter

GOOD = "这家酒店离车站很近，房间干净，早餐也不错，下次出差还会选择这里。"
REVIEW = "他家的牛肉面分量很足，汤头清淡却有味道，唯一的缺点是中午排队的人实在太多了，等了快四十分钟。"


def reasons(*texts: str, **settings: Any) -> list[str | None]:
    return verdicts(Batch.of(texts), QualityConfig(**settings))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("𠀀𠀁是两个不常见的字", None),
        ("好的", "too short"),
        ("", "too short"),
        ("\ufffd\ufffd这段文字\ufffd坏了\ufffd", "garbled"),
        ("锟斤拷锟斤拷我们的数据", "garbled"),
        (GOOD.encode().decode("gb18030", "ignore"), "garbled"),
        (GOOD.encode().decode("latin-1"), "garbled"),
        ("ああ、これは日本語の文です。とてもいいですね", "language"),
        ("이 호텔은 역에서 가깝고 방이 깨끗합니다", "language"),
        ("The hotel is close to the station and clean.", "language"),
        ("hotel staff 很好 price 便宜 breakfast 不错 hao", "language"),
        ("型号:AB12,CD34 规格 1200*800*600 (mm) 很好 12", "few Chinese characters"),
        ("很好很好很好很好很好很好！！！！！！！！！！", "punctuation"),
        ("电话号码是请记下来好吗 123456789012345", "digits"),
        ("同一行字\n同一行字\n同一行字\n同一行字\n另外一行", "repeated lines"),
        (GOOD[:20] * 12, "repeated n-grams"),
    ],
)
def test_each_rule_drops_what_it_is_for(text: str, reason: str | None) -> None:
    assert reasons(GOOD, text, REVIEW) == [None, reason, None]


def test_a_rule_sees_no_neighbour_and_empty_batches_pass() -> None:
    texts = [GOOD, "", REVIEW, "a", GOOD[:20] * 12, "同\n同\n同\n同\n同"]
    assert reasons(*texts) == [reasons(text)[0] for text in texts]
    assert reasons() == []


def test_counts_are_those_of_a_plain_loop() -> None:
    texts = ["汉字 abc\n１２3，。", "", "é\u200b\ue000\x07かな한글", "锛屽ソ"]
    counts_DC = Batch.of(texts).counts_DC
    assert [int(row.sum()) for row in counts_DC] == [len(text) for text in texts]
    assert counts_DC[0, [Sign.HAN, Sign.LATIN, Sign.DIGIT, Sign.PUNCTUATION, Sign.SPACE, Sign.NEWLINE]].tolist() == [
        2,
        3,
        3,
        2,
        1,
        1,
    ]
    rest = [Sign.ACCENTED, Sign.ZERO_WIDTH, Sign.BROKEN, Sign.CONTROL, Sign.KANA, Sign.HANGUL]
    assert counts_DC[2, rest].tolist() == [1, 1, 1, 1, 2, 2]
    assert counts_DC[3, Sign.SUSPECT] == 1


def test_other_languages_can_be_kept() -> None:
    english = "The hotel is close to the station and clean."
    assert reasons(english, languages=[Language.LATIN], min_han_share=0.0) == [None]
    assert reasons(english, languages=[], min_han_share=0.0) == [None]


def test_real_text_is_not_taken_for_garbled() -> None:
    assert not any(map(is_wrongly_decoded, (GOOD, REVIEW, "涓涓细流，鍒是生僻字", "Café déjà vu à Genève", "naïve 的写法")))


def test_mixed_scripts_are_asked_only_where_set() -> None:
    pytest.importorskip("opencc")
    mixed = "這個東西很貴，这个东西很贵。"
    assert reasons(mixed) == [None]
    assert reasons(mixed, GOOD, max_mixed_script=0.2) == ["mixed scripts", None]


def test_lines_are_cleaned_and_good_text_stays_the_same_object() -> None:
    config = NormaliseConfig()
    assert normalised(Batch.of([GOOD]), config)[0] is GOOD
    assert normalised(Batch.of(["\ufeff第一行 \r\n\r\n\r\n\t第二行\u200b\x07 \u2028三 "]), config) == ["第一行\n\n第二行\n三"]
    assert normalised(Batch.of(["ＡＢ１２，ｶﾞ"]), config) == ["ＡＢ１２，ｶﾞ"]
    assert normalised(Batch.of(["ＡＢ１２，"]), NormaliseConfig(unicode=UnicodeForm.NFKC)) == ["AB12,"]
    assert normalised(Batch.of([" \x00a"]), NormaliseConfig(cleans_lines=False)) == [" \x00a"]


def test_scripts_are_converted() -> None:
    pytest.importorskip("opencc")
    assert normalised(Batch.of(["漢字轉換"]), NormaliseConfig(script=Script.SIMPLIFIED)) == ["汉字转换"]


def test_short_lines_with_boilerplate_are_taken_out() -> None:
    text = f"{GOOD}\n上一篇：如何订酒店\n{REVIEW}\n版权所有 未经授权不得转载"
    assert without_boilerplate([GOOD, text], ["上一篇", "版权所有"]) == [GOOD, f"{GOOD}\n{REVIEW}"]
    assert without_boilerplate([REVIEW * 2 + "版权所有"], ["版权所有"]) == [REVIEW * 2 + "版权所有"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("身份证11010519491231002X。", "身份证[身份证号]。"),
        ("身份证１１０１０５１９４９１２３１００２Ｘ。", "身份证[身份证号]。"),
        ("编号110105194912310021。", "编号110105194912310021。"),  # its check digit is wrong
        ("请打13812345678或+86 139-1234-5678", "请打[手机号]或[手机号]"),
        ("请打１３８１２３４５６７８", "请打[手机号]"),
        ("订单号2013812345678901", "订单号2013812345678901"),
        ("卡号6222 0212 3456 7890 129是", "卡号6222 0212 3456 7890 129是"),
        ("卡号4539 1488 0343 6467是", "卡号[银行卡号]是"),
        ("车牌粤B·12345和粤BD12345，还有京A0006警", "车牌[车牌号]和[车牌号]，还有京A0006警"),
        ("京ABCDEF这样的词", "京ABCDEF这样的词"),
        ("写信到 li.lei@mail.example.com.cn，谢谢", "写信到 [邮箱]，谢谢"),
        ("@小明 你好", "@小明 你好"),
    ],
)
def test_personal_data_are_masked_in_any_width(text: str, expected: str) -> None:
    counts: dict[str, int] = {}
    assert masked(Batch.of([GOOD, text]), list(Personal), counts) == [GOOD, expected]
    assert sum(counts.values()) == expected.count("[")
    assert masked(Batch.of([text]), [], {}) == [text]


def test_check_digits() -> None:
    assert is_id_number("11010519491231002X") and not is_id_number("110105194912310029")
    assert is_card_number("4539 1488 0343 6467") and not is_card_number("4539 1488 0343 6468")


def rows_file(place: Path, *texts: str) -> Path:
    place.write_text("".join(f'{{"sentence": "{text}", "label": "1"}}\n' for text in texts), encoding="utf-8")
    return place


def naive_overlaps(documents: list[str], evaluation: list[str], width: int, shortest: int) -> list[bool]:
    """Say which documents share a passage, by strings."""
    kept = [plain for text in evaluation if len(plain := plain_of(text)) >= shortest]
    passages = {text[i : i + width] for text in kept for i in range(len(text) - width + 1)} | {t for t in kept if len(t) < width}
    return [any(passage in plain_of(document) for passage in passages) for document in documents]


def plain_of(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if unicodedata.category(c)[0] in "LN")


def test_overlaps_are_those_that_strings_show(tmp_path: Path) -> None:
    draw = random.Random(0)
    letters = "的一是在不了有和人这中大为上个国我以要他，。！ＡｂＣ１２3 "
    texts = ["".join(draw.choices(letters, k=draw.randint(5, 60))) for _ in range(60)]
    evaluation, documents = texts[:30], texts[30:]
    for place in range(0, 30, 3):
        source = evaluation[place]
        cut = source[draw.randint(0, 3) :][: draw.randint(6, 60)]
        documents[place] = documents[place][:20] + cut.translate({ord("，"): ",", ord("Ａ"): "a"}) + documents[place][20:]
    index = EvaluationIndex.of({"t.json": rows_file(tmp_path / "t.json", *evaluation)}, width=12, shortest=8)
    found = index.overlaps(Batch.of(documents))
    expected = naive_overlaps(documents, evaluation, 12, 8)
    assert 3 < sum(expected) < 30
    assert [place in found for place in range(30)] == expected
    index.save(tmp_path / "index")
    assert EvaluationIndex.open(tmp_path / "index").overlaps(Batch.of(documents)) == found
    assert index.overlaps(Batch.of([])) == {} == index.overlaps(Batch.of(["，。", ""]))


def test_a_planted_evaluation_sentence_is_counted_by_file(tmp_path: Path) -> None:
    one, other = rows_file(tmp_path / "a.json", REVIEW), tmp_path / "b.txt"
    other.write_text("电池一天要充三次，太差\n", encoding="utf-8")
    index = EvaluationIndex.of({"a.json": one, "b.txt": other}, 24, 10)
    wide = "据说" + REVIEW.replace("，", ", ").replace("四十", "四 十") + "就是这样。"
    short = "总的来说：电池一天要充三次 太差！不推荐大家购买这个产品。"
    tally = Tally()
    config = CorpusConfig(overlap=OverlapConfig(files=["given"]))
    kept = Sieve(config, index, tally).sift([Document(text=text, domain="web") for text in (GOOD, wide, short)])
    assert [row["text"] for row in kept] == [GOOD]
    assert tally.overlaps == {"a.json": 1, "b.txt": 1} and tally.dropped == {OVERLAP: 2}
    assert tally.samples[OVERLAP] == [wide, short]


def test_folding_keeps_letters_digits_and_characters() -> None:
    assert folded("Ａb １，。！漢字𠀀😀") == "ab1漢字𠀀"


def test_shards_hold_what_was_written_and_are_read_as_a_corpus(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 3, most_bytes=50)
    texts = [GOOD, REVIEW, "短的一篇"]
    for text, domain in zip(texts, ("a_b", "a_b", "c/d"), strict=True):
        writer.write({"text": text, "domain": domain})
    writer.close()
    names = [shard.file for shard in writer.shards]
    assert sorted(names) == ["a-b_00003_000.jsonl.gz", "a-b_00003_001.jsonl.gz", "c-d_00003_000.jsonl.gz"]
    listed = [
        {field: getattr(shard, field) for field in ("file", "domain", "documents", "characters", "bytes")}
        for shard in writer.shards
    ]
    (tmp_path / "shards.json").write_text(json.dumps({"shards": listed}), encoding="utf-8")
    found = [document for file in find_corpus([str(tmp_path)]) for document in read_documents(file)]
    assert sorted(document.text for document in found) == sorted(texts)
    assert {document.domain for document in found} == {"a_b", "c/d"}
    assert {document.domain for file in find_corpus([str(tmp_path)], "domain") for document in read_documents(file)} == {
        "a_b",
        "c/d",
    }
    (tmp_path / names[0]).unlink()
    with pytest.raises(DataError, match="is missing; run `python -m pipelines.corpus` again"):
        find_corpus([str(tmp_path)])


def test_zst_and_wet_files_are_read(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(f'{{"text": "{GOOD}"}}\n'.encode())
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    (tmp_path / "b.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(f"{REVIEW}\n".encode()))
    body = GOOD.encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:x>\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}"
    )
    (tmp_path / "c.wet.gz").write_bytes(gzip.compress(f"{head}\r\n\r\n".encode() + body + b"\r\n\r\n"))
    read = [document.text for file in find_corpus([f"{tmp_path}/*"]) for document in read_documents(file)]
    assert read == [GOOD, REVIEW, GOOD]
    (tmp_path / "a.jsonl.zst").write_bytes(packed[:-9])
    with pytest.raises(DataError):
        list(read_documents(find_corpus([f"{tmp_path}/a.jsonl.zst"])[0]))
    (tmp_path / "a.jsonl.zst").write_bytes(b"plain text")
    with pytest.raises(DataError, match="not a Zstandard file"):
        list(read_documents(find_corpus([f"{tmp_path}/a.jsonl.zst"])[0]))


def test_shingles_are_the_ngrams_that_differ() -> None:
    passes = pytest.importorskip("adapt.text.cleaning.passes")
    text = "今天天气很好今天天气很好。ＡＢＣ"
    plain = plain_of(text)
    assert len(passes.shingles(text, 5)) == len({plain[i : i + 5] for i in range(len(plain) - 4)})
    assert np.array_equal(passes.shingles(text, 5), passes.shingles(text.replace("。", "!!! ").replace("Ａ", "a"), 5))
    assert len(passes.shingles("今天", 5)) == 0
