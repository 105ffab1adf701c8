"""`pipelines.serve` in process: a predictor that records what it is asked, no sockets, no sleeps."""

from __future__ import annotations

import asyncio
import builtins
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs httpx")

import httpx

from adapt.core.errors import ConfigError
from adapt.model.config import HFConfig
from pipelines.config.locations import conf_dir
from pipelines.config.schema import PipelineConfig
from pipelines.config.serve_settings import ServeConfig
from pipelines.serving.application import application
from pipelines.serving.batches import Batches, QueueFull
from pipelines.serving.guard import Guard
from pipelines.serving.metrics import Metrics
from pipelines.serving.server import _taken_at_last, listening
from pseudo_label.predictor import Prediction
from pseudo_label.tasks import TaskConfig, TaskRow, load_task

TASK = load_task("demo_reviews", [conf_dir() / "task"])
FIELD = next(iter(TASK.fields.values())).path
LABELS = list(TASK.label_words)
PAIRS = load_task("ocnli", [conf_dir() / "task"])
HELD_S = 20.0  # a test that waits for so long has failed


class Recorder:
    """Labels a row by the length of its text, and keeps the batches; while `is_free` is clear it answers nothing."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.is_free, self.has_begun = threading.Event(), threading.Event()
        self.is_free.set()

    def __call__(self, rows: Sequence[TaskRow]) -> list[Prediction]:
        texts = ["|".join(row.texts.values()) for row in rows]
        self.batches.append(texts)
        self.has_begun.set()
        assert self.is_free.wait(HELD_S)
        if any("poison" in text for text in texts):
            raise ValueError(f"cannot take {texts}")
        return [_answer(text) for text in texts]


def _answer(text: str) -> Prediction:
    likeliest = LABELS[len(text) % len(LABELS)]
    rest = {label: 0.2 / (len(LABELS) - 1) for label in LABELS if label != likeliest}
    return Prediction(label=likeliest, probabilities={**rest, likeliest: 0.8}, is_cut=len(text) > 20)


def with_client(
    act: Callable[[httpx.AsyncClient, Batches], Coroutine[Any, Any, None]],
    answer: Recorder,
    task: TaskConfig = TASK,
    **settings: Any,
) -> None:
    """Do something with a client of an application that answers so."""
    found = ServeConfig(**settings)

    async def whole() -> None:
        with Batches(answer, batch_rows=found.batch_rows, queue_rows=found.queue_rows) as batches:
            transport = httpx.ASGITransport(application(task, batches, found))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await act(client, batches)

    asyncio.run(whole())


def post_all(bodies: Sequence[Any], answer: Recorder, task: TaskConfig = TASK, **settings: Any) -> list[httpx.Response]:
    """Return what is answered to bodies (JSON, or bytes as they are), one after the other."""
    found: list[httpx.Response] = []

    async def act(client: httpx.AsyncClient, _: Batches) -> None:
        for body in bodies:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            found.append(await client.post("/predict", content=content, headers={"content-type": "application/json"}))

    with_client(act, answer, task, **settings)
    return found


async def until_waiting(batches: Batches, rows: int) -> None:
    async with asyncio.timeout(HELD_S):
        while batches.waiting != rows:
            await asyncio.sleep(0)


def test_rows_and_texts_get_labels_with_the_likeliest_alternatives() -> None:
    rows = ["ab", {FIELD: "abc", "more": [1]}]
    sent = [{"rows": rows, "alternatives": 1}, {"rows": []}, json.dumps({"rows": ["ab"]}).encode("utf-16")]
    done = post_all(sent, Recorder())
    assert done[2].status_code == 200
    first, second = done[0].json()["predictions"]
    assert (first["label"], second["label"]) == (LABELS[2 % len(LABELS)], LABELS[3 % len(LABELS)])
    assert first["probability"] == first["probabilities"][first["label"]] == 0.8
    assert set(first["probabilities"]) == set(LABELS)
    assert [one["label"] for one in first["alternatives"]] == [label for label in LABELS if label != first["label"]][:1]
    assert done[1].json() == {"task": TASK.name, "predictions": []}
    long = post_all([{"rows": ["ab", "a" * 30]}], Recorder())[0].json()["predictions"]
    assert [one["cut"] for one in long] == [False, True]


def test_a_wrong_row_is_one_line_that_names_it_and_repeats_no_text() -> None:
    answer = Recorder()
    cases: list[tuple[Any, int, str]] = [
        ({"rows": ["a", {"other": "secret"}]}, 422, f"row 2: has no '{FIELD}'"),
        ({"rows": ["a", "b", 7]}, 422, "row 3: is neither an object nor a text"),
        ({"rows": "secret"}, 422, "'rows'"),
        ({"row": ["secret"]}, 422, "'rows'"),
        ({"rows": ["a"], "alternatives": True}, 422, "'alternatives'"),
        (b'{"rows": ["a"], "rows": ["secret"]}', 422, "the body: has 'rows' twice"),
        (b'{"rows": [{"sentence": "a", "sentence": "secret"}]}', 422, "has 'sentence' twice"),
        (["secret"], 422, "the body"),
        (b'{"rows": ["secret"', 400, "no JSON"),
        (b"\xff\xfe", 400, "body"),
        (b"[" * 100_000, 400, "body"),
        (b'{"rows": ["\\ud800"]}', 422, "row 1: 'sentence': it has half a surrogate pair"),
    ]
    answered = post_all([body for body, _, _ in cases], answer)
    for (_, status, words), found in zip(cases, answered, strict=True):
        assert found.status_code == status, found.text
        detail = found.json()["detail"]
        assert words in detail, detail
        assert "\n" not in detail
        assert "secret" not in detail
    assert answer.batches == []


def test_a_text_is_no_row_of_a_task_with_two_fields() -> None:
    paths = [spec.path for spec in PAIRS.fields.values()]
    done = post_all([{"rows": [dict.fromkeys(paths, "a"), "text"]}, {"rows": [dict.fromkeys(paths, "a")]}], Recorder(), PAIRS)
    assert done[0].status_code == 422
    assert "row 2: is a text" in done[0].json()["detail"]
    assert done[1].status_code == 200


def test_a_body_is_counted_with_and_without_a_stated_length() -> None:
    answer = Recorder()

    async def act(client: httpx.AsyncClient, _: Batches) -> None:
        taken = 0

        async def parts() -> AsyncIterator[bytes]:
            nonlocal taken
            for _ in range(50):
                taken += 1
                yield b'{"rows": "' + b"a" * 100

        chunked = await client.post("/predict", content=parts(), headers={"content-type": "application/json"})
        assert "content-length" not in chunked.request.headers
        stated = await client.post("/predict", content=b"a" * 1001)
        assert [one.status_code for one in (chunked, stated)] == [413, 413]
        assert "1,000 bytes" in chunked.json()["detail"]
        assert taken == 50  # the rest was taken and dropped, so that the client comes to read its answer
        fits = json.dumps({"rows": ["a" * 980]}).encode()
        assert len(fits) <= 1000
        assert (await client.post("/predict", content=fits, headers={"content-type": "application/json"})).status_code == 200

    with_client(act, answer, body_mb=0.001)


def test_a_body_that_does_not_come_is_given_up_and_one_that_breaks_off_is_forgotten() -> None:
    async def unreached(*_: Any) -> None:
        raise AssertionError("reached the application")

    async def whole() -> None:
        guard = Guard(unreached, Metrics([]), body_bytes=100, timeout_s=0.01)
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def nothing() -> Any:
            await asyncio.Event().wait()

        async def gone() -> Any:
            return {"type": "http.disconnect"}

        scope = {"type": "http", "path": "/predict", "headers": []}
        await guard(scope, nothing, send)
        assert sent[0]["status"] == 408
        sent.clear()
        await guard(scope, gone, send)
        assert sent == []

    asyncio.run(whole())


def test_too_many_rows_of_one_request_are_refused() -> None:
    done = post_all([{"rows": ["a"] * 4}, {"rows": ["a"] * 3}], Recorder(), request_rows=3)
    assert [one.status_code for one in done] == [413, 200]
    with pytest.raises(ConfigError, match="queue_rows"):
        ServeConfig(request_rows=10, queue_rows=9)


def test_concurrent_requests_share_batches_and_each_gets_its_own_answers() -> None:
    answer = Recorder()
    answer.is_free.clear()

    async def act(client: httpx.AsyncClient, batches: Batches) -> None:
        sent = [["x" * (number + 1)] * (number % 3 + 1) for number in range(9)]
        first = asyncio.ensure_future(client.post("/predict", json={"rows": ["held"]}))
        assert await asyncio.to_thread(answer.has_begun.wait, HELD_S)
        rest = [asyncio.ensure_future(client.post("/predict", json={"rows": rows})) for rows in sent]
        await until_waiting(batches, sum(map(len, sent)))
        answer.is_free.set()
        assert (await first).status_code == 200
        for rows, done in zip(sent, await asyncio.gather(*rest), strict=True):
            labels = [one["label"] for one in done.json()["predictions"]]
            assert labels == [_answer(text).label for text in rows]

    with_client(act, answer, batch_rows=4)
    assert [len(batch) for batch in answer.batches] == [1, 4, 4, 4, 4, 2]


def test_a_full_queue_is_503_with_retry_after_and_a_late_answer_504() -> None:
    answer = Recorder()
    answer.is_free.clear()

    async def act(client: httpx.AsyncClient, batches: Batches) -> None:
        held = asyncio.ensure_future(client.post("/predict", json={"rows": ["held"]}))
        assert await asyncio.to_thread(answer.has_begun.wait, HELD_S)
        waits = asyncio.ensure_future(client.post("/predict", json={"rows": ["waits", "too"]}))
        await until_waiting(batches, 2)
        full = await client.post("/predict", json={"rows": ["more"]})
        assert full.status_code == 503
        assert int(full.headers["retry-after"]) > 0
        assert "2 rows wait, of at most 2" in full.json()["detail"]
        assert [(await one).status_code for one in (held, waits)] == [504, 504]
        assert batches.waiting == 0
        answer.is_free.set()

    with_client(act, answer, request_rows=2, queue_rows=2, timeout_s=0.3)
    assert answer.batches == [["held"]]  # what nobody waits for is not scored


def test_rows_that_cannot_be_answered_harm_no_others_and_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    answer = Recorder()
    answer.is_free.clear()

    async def act(client: httpx.AsyncClient, batches: Batches) -> None:
        held = asyncio.ensure_future(client.post("/predict", json={"rows": ["held"]}))
        assert await asyncio.to_thread(answer.has_begun.wait, HELD_S)
        both = [asyncio.ensure_future(client.post("/predict", json={"rows": [text]})) for text in ("poison secret", "well")]
        await until_waiting(batches, 2)
        answer.is_free.set()
        assert [(await one).status_code for one in (held, *both)] == [200, 500, 200]
        assert "secret" not in (await both[0]).text
        assert "ValueError" in (await both[0]).json()["detail"]

    with caplog.at_level("DEBUG"):
        with_client(act, answer)
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert "held" not in caplog.text


def test_leaving_answers_what_is_queued_and_takes_no_more() -> None:
    answer = Recorder()
    answer.is_free.clear()
    batches = Batches(answer, batch_rows=1, queue_rows=9)
    rows = [TaskRow(id=number, texts={"text": "x" * number}, label=None, candidates=None, line=1) for number in range(3)]
    with batches:
        futures = [batches.submit([row]) for row in rows]
        assert batches.is_answering
        ends = threading.Timer(0, answer.is_free.set)
        ends.start()
    ends.join()
    assert [future.result(0)[0] for future in futures] == [_answer("x" * number) for number in range(3)]
    assert not batches.is_answering
    with pytest.raises(QueueFull, match="ending"):
        batches.submit(rows)


def test_health_metrics_and_description() -> None:
    async def act(client: httpx.AsyncClient, batches: Batches) -> None:
        await client.post("/predict", json={"rows": ["a", "b"]})
        await client.post("/predict", json={"rows": [1]})
        await client.get("/nowhere/secret")
        assert (await client.get("/health")).json() == {"status": "ok", "task": TASK.name}
        text = (await client.get("/metrics")).text
        for line in (
            'serve_requests_total{path="/predict",status="200"} 1',
            'serve_requests_total{path="/predict",status="422"} 1',
            'serve_requests_total{path="other",status="404"} 1',
            "serve_errors_total 2",
            "serve_rows_total 2",
            "serve_queue_rows 0",
            "serve_request_seconds_count 4",
            'serve_request_seconds_bucket{le="+Inf"} 4',
        ):
            assert line in text.splitlines()
        assert all(re.fullmatch(r"# (HELP|TYPE) .+|[a-z_]+(\{[^{}]+\})? [\d.]+", line) for line in text.splitlines())
        described = (await client.get("/openapi.json")).json()["paths"]["/predict"]["post"]
        answered = (await client.get("/openapi.json")).json()["components"]["schemas"]["Labelled"]
        assert "cut" in answered["required"] and "context" in answered["properties"]["cut"]["description"]
        assert {"200", "400", "413", "422", "503", "504"} <= set(described["responses"])
        assert (await client.get("/docs")).status_code == 404  # its page would ask elsewhere for scripts
        batches.__exit__(None, None, None)
        ending = await client.get("/health")
        assert (ending.status_code, ending.json()["status"]) == (503, "ending")
        refused_now = await client.post("/predict", json={"rows": ["a"]})
        assert refused_now.status_code == 503

    with_client(act, Recorder())


def test_the_page_asks_nobody_else_and_writes_text_only() -> None:
    hostile = TaskConfig(**{**vars(TASK), "name": "</title><script>alert(1)</script>"})

    async def act(client: httpx.AsyncClient, _: Batches) -> None:
        html = (await client.get("/")).text
        assert "<script>alert" not in html
        assert "default-src 'none'" in html
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|innerHTML|insertAdjacentHTML|document\.write", html)
        assert 'name="viewport"' in html
        assert "if (answer.cut)" in html
        assert "prefers-color-scheme:dark" in html

    with_client(act, Recorder(), hostile)


def test_an_address_that_is_taken_or_none_is_one_line() -> None:
    with listening(ServeConfig(port=0)) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"serve.port: cannot listen on 127.0.0.1:{port}"):
            listening(ServeConfig(port=port))
    with pytest.raises(ConfigError, match="serve.host"):
        listening(ServeConfig(host="no such host"))


def test_a_connection_that_nobody_took_yet_is_taken_when_the_port_closes() -> None:
    bound = listening(ServeConfig(port=0))
    address = bound.getsockname()
    with socket.create_connection(address) as client:
        (taken,) = _taken_at_last(bound)
        with taken:
            client.sendall(b"a")
            assert taken.recv(1) == b"a"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_what_is_missing_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.tools.serve import run

    config = PipelineConfig(model=HFConfig(path="none"))
    with pytest.raises(ConfigError, match="checkpoint: is missing"):
        run(config, None)
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pipelines.serving"):
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"fastapi is not installed; run `pip install 'moe-adapt\[serve\]'`"):
        run(config, None)
