"""`python -m pipelines.corpus`: planted documents are found, later stages read the shards, killed runs end in the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.core.precision import Precision
from adapt.core.spans import Reading, Span
from adapt.model.batches import collate
from adapt.text.cleaning.config import CorpusConfig
from adapt.text.corpus import find_corpus, read_documents
from adapt.text.shards import SHARDS
from pipelines.config.locations import demo_dir
from pipelines.stages.corpus_losses import BaseLosses
from tests.support.command_line import FP32_SCORES, refused

passes = pytest.importorskip("adapt.text.cleaning.passes")
executors = pytest.importorskip("adapt.text.cleaning.executors")

EVALUATION = "这款手机的屏幕在阳光下几乎看不清楚，售后又让我等了整整两个星期才给答复。"
PLANTED = "网友说：这款手机的屏幕 在阳光下几乎看不清楚,售后又让我等了整整两个星期，才给答复!你们觉得呢"
DOUBLE = "城西的老书店要搬走了，老板说房租涨得太快，旧书只好半价处理给街坊邻居。"
LONG = "".join(f"第{n}章讲的是{a}和{b}怎样在山里走散，又怎样在{c}重逢，书里的对话写得很朴素。" for n, (a, b, c) in
               enumerate(zip("赵钱孙李周吴郑王", "冯陈褚卫蒋沈韩杨", "村镇城桥寺港庙站", strict=True)))  # fmt: skip
WITH_ID = "登记表上写着身份证号码11010519491231002X，联系电话１３８１２３４５６７８，请仔细核对以后再提交给窗口。"
WITH_ID += "一周之内会有答复，不必再来。"
GARBLED = DOUBLE.encode().decode("gb18030", "ignore")


def filler(draw: random.Random) -> str:
    """Return a sentence of its own: no two share many n-grams."""
    return "".join(chr(draw.randint(0x4E00, 0x9000)) for _ in range(draw.randint(30, 60))) + "。"


def write_raw(place: Path) -> list[str]:
    """Write three raw files with planted documents; return the arguments that name them and the evaluation file."""
    draw = random.Random(5)
    texts = [[filler(draw) for _ in range(30)] for _ in range(3)]
    texts[0] += [DOUBLE, LONG, PLANTED]
    texts[1] += [DOUBLE.replace("，", ",") + " ", GARBLED, WITH_ID]
    texts[2] += [LONG.replace("朴素", "生动", 1), "<script> var a = 1; </script> only code here"]
    place.mkdir(parents=True)
    for number, (name, own) in enumerate(zip(("news_1", "news_2", "web_1"), texts, strict=True)):
        draw.shuffle(own)
        rows = [json.dumps({"text": text, "from": f"d{number}"}, ensure_ascii=False) for text in own]
        (place / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (place / "eval").mkdir()
    (place / "eval" / "test.json").write_text(json.dumps({"sentence": EVALUATION, "id": 1}), encoding="utf-8")
    (place / "eval" / "dev.json").write_text(json.dumps({"sentence": "没有人抄过的一句评测文字，放在这里。"}), encoding="utf-8")
    return [f"data.corpus=[{place}/*.jsonl]", f"corpus.overlap.files=[{place}/eval/*.json]", f"run.dir={place}/runs", "run.name=c"]


def texts_in(shards: Path) -> dict[str, str]:
    return {document.text: document.domain for file in find_corpus([str(shards)]) for document in read_documents(file)}


def test_planted_documents_are_found_and_the_shards_are_a_corpus(
    tmp_path: Path, run_here: Callable[[str, list[str]], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_raw(tmp_path / "raw")
    said = run_here("corpus", arguments)
    place = tmp_path / "raw" / "runs" / "c" / "corpus"
    counts = json.loads((place / SHARDS).read_text(encoding="utf-8"))["counts"]
    assert counts["dropped"] == {"evaluation text": 1, "exact repeat": 1, "near repeat": 1, "garbled": 1, "language": 1}
    assert counts["overlaps"] == {"eval/dev.json": 0, "eval/test.json": 1}
    assert counts["masked"] == {"id_number": 1, "mobile": 1}
    kept = texts_in(place)
    assert len(kept) == 93 and kept[DOUBLE] == "news"
    assert WITH_ID.replace("11010519491231002X", "[身份证号]").replace("１３８１２３４５６７８", "[手机号]") in kept
    assert sum(text.startswith("第0章") for text in kept) == 1
    assert "93 of 98 documents in 3 shards" in said
    page = (place / "corpus.html").read_text(encoding="utf-8")
    assert PLANTED in page and "&lt;script&gt; var a" in page and "<script> var" not in page
    assert "unchanged, skipped" in run_here("corpus", [*arguments, "corpus.workers=2"])
    refused("run", [*arguments, "stages=[corpus,tokenizer]"], ["corpus makes what the others read"], monkeypatch, capsys)


def test_a_base_drops_what_is_hardest_to_read_in_each_domain(tmp_path: Path, run_here: Callable[[str, list[str]], str]) -> None:
    words = ["我们今天去公园散步，天气很好。", "他说这部电影很好看，我也想去看。", "你好，请问附近有没有好吃的饭店？"]
    rows = [{"text": f"{words[i % 3]}{i}点再见。"} for i in range(30)] + [{"text": "翾顗瀡刾飋躘蠿矡黤鑨。"}]
    (tmp_path / "talk.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    arguments = [
        f"data.corpus={tmp_path}/talk.jsonl", f"run.dir={tmp_path}/runs", "run.name=c", "corpus.duplicates.near=false",
        f"corpus.perplexity.checkpoint={demo_dir()}/base",
    ]  # fmt: skip
    said = run_here("corpus", arguments)
    counts = json.loads((tmp_path / "runs" / "c" / "corpus" / SHARDS).read_text(encoding="utf-8"))["counts"]
    assert counts["dropped"] == {"high perplexity": 1} and "30 of 31 documents" in said
    assert counts["samples"]["high perplexity"] == [rows[-1]["text"]]
    page = (tmp_path / "runs" / "c" / "corpus" / "corpus.html").read_text(encoding="utf-8")
    assert "high perplexity: 1" in page and rows[-1]["text"] in page
    assert "unchanged, skipped" in run_here("corpus", arguments)


def test_losses_of_a_batch_are_those_of_each_text_by_itself() -> None:
    texts = ["我们今天去公园散步，天气很好。", "好", "他说这部电影很好看，" * 20, "?"]
    losses = BaseLosses(weights=demo_dir() / "base", precision=Precision.FP32, tokens=40)
    together = losses(texts)
    opened = open_checkpoint(demo_dir() / "base", FP32_SCORES)
    for text, found in zip(texts, together.tolist(), strict=True):
        assert losses([text])[0] == pytest.approx(found, abs=1e-5)
        ids = [opened.tokenizer.bos_id, *opened.tokenizer.encode(text)[:40]]
        kept = text if len(ids) < 41 else opened.tokenizer.decode(ids[1:])
        with torch.no_grad():
            batch = collate([[plain_reading(ids)]])
            logits_TV = opened.model.logits(opened.model(batch.inputs).hidden_BTH[0]).log_softmax(-1)
        nats = -sum(float(logits_TV[place, ids[place + 1]]) for place in range(len(ids) - 1))
        assert found == pytest.approx(nats / len(kept), abs=1e-4)


def plain_reading(ids: list[int]) -> Reading:
    return Reading(inputs_T=np.asarray(ids[:-1]), targets_T=np.asarray(ids[1:]), kinds_T=np.full(len(ids) - 1, int(Span.CONTEXT)))


def test_what_cannot_be_cleaned_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_raw(tmp_path / "raw")
    refused(
        "corpus",
        [*arguments, "corpus.overlap.files=[/no/such.json]"],
        ["corpus.overlap.files", "/no/such.json"],
        monkeypatch,
        capsys,
    )
    no_base = ["corpus.perplexity.checkpoint=/no/such"]
    refused("corpus", [*arguments, *no_base], ["/no/such: no such directory", "corpus.perplexity.checkpoint="], monkeypatch, capsys)
    refused(
        "corpus", [*arguments, "corpus.quality.min_characters=10000"], ["drop every document", "too short"], monkeypatch, capsys
    )
    (tmp_path / "raw" / "web_1.jsonl").write_text('{"text": "好"}\n{"text": 3}\n', encoding="utf-8")
    refused("corpus", arguments, ["web_1.jsonl, line 2", "no text field"], monkeypatch, capsys)
    assert not (tmp_path / "raw" / "runs" / "c" / "corpus").exists()


def by_first_character(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return made-up losses."""
    return np.asarray([ord(text[0]) % 100 / 10 for text in texts])


def cleaned(raw: Path, place: Path) -> dict[str, str]:
    """Clean below a place; return the digests of the shards."""
    (place / "result").mkdir(parents=True, exist_ok=True)
    files = find_corpus([f"{raw}/*.jsonl"])
    done = passes.clean_corpus(files, None, CorpusConfig(), place / "result", place / "work", by_first_character)
    return {shard.file: hashlib.sha256((place / "result" / shard.file).read_bytes()).hexdigest() for shard in done.shards}


def killed(raw: Path, place: Path, n_writes: int) -> None:
    """Clean in a process of its own that is killed when it has finished so many tasks."""
    child = os.fork()
    if child == 0:
        _kill_after(n_writes)
        cleaned(raw, place)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _kill_after(n_writes: int) -> None:
    finish = executors.LocalExecutor.mark_rank_as_completed
    left = [n_writes]

    def counted(self: Any, rank: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)  # this task wrote its files, and nothing says so
        finish(self, rank)

    executors.LocalExecutor.mark_rank_as_completed = counted


def test_killed_twice_the_shards_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    undisturbed = cleaned(tmp_path / "raw", tmp_path / "whole")
    killed(tmp_path / "raw", tmp_path / "torn", 2)
    killed(tmp_path / "raw", tmp_path / "torn", 9)
    killed(tmp_path / "raw", tmp_path / "torn", 15)  # while documents are weighed
    assert any((tmp_path / "torn" / "work" / "passes").iterdir())
    assert cleaned(tmp_path / "raw", tmp_path / "torn") == undisturbed
    assert len(undisturbed) == 3
