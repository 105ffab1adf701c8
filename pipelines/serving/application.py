"""The interface: rows in JSON to labels, health, metrics, and a page. Needs the extra `serve` (FastAPI).

Its description by OpenAPI is at /openapi.json.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from adapt.core.errors import DataError, shown
from adapt.text.rows.json_rows import repeated_key
from pipelines.config.serve_settings import ServeConfig
from pipelines.report_page.serve_page import serve_page
from pipelines.serving.batches import Batches, QueueFull
from pipelines.serving.guard import Guard
from pipelines.serving.metrics import CONTENT_TYPE, Metrics
from pseudo_label.predictor import Prediction
from pseudo_label.tasks import TaskConfig, TaskRow, row_from

_MEGABYTE = 1_000_000
_RETRY = {"Retry-After": "1"}


class Rows(BaseModel):
    """A request: rows with the task's fields, or their texts where the task has one field."""

    model_config = ConfigDict(extra="forbid")
    rows: list[dict[str, Any] | str] = Field(description="Objects with the task's fields; texts where it has one field.")
    alternatives: int = Field(3, ge=0, strict=True, description="Most other labels that are listed for a row, the likeliest first.")


class Alternative(BaseModel):
    """Another label and its probability."""

    label: str
    probability: float


class Labelled(BaseModel):
    """The answer for one row."""

    label: str
    probability: float
    alternatives: list[Alternative]
    probabilities: dict[str, float] = Field(description="The probability of every label.")
    cut: bool = Field(description="Whether the row is longer than the model's context, so that the model read a part of it.")


class Answer(BaseModel):
    """The answers, in the order of the rows."""

    task: str
    predictions: list[Labelled]


class Refusal(BaseModel):
    """Why there is no answer, in one line."""

    detail: str


class Health(BaseModel):
    """Whether requests are answered."""

    status: str
    task: str


_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is no JSON."},
    408: {"model": Refusal, "description": "The request came too slowly."},
    413: {"model": Refusal, "description": "Too large a body or too many rows."},
    422: {"model": Refusal, "description": "A row is not of the task."},
    500: {"model": Refusal, "description": "The server failed."},
    503: {"model": Refusal, "description": "Too many rows wait, or the server is ending."},
    504: {"model": Refusal, "description": "Answering took too long."},
}


def application(task: TaskConfig, batches: Batches, settings: ServeConfig) -> Guard:
    """Return the application that answers rows of a task by `batches`, whose context is entered elsewhere."""
    app = FastAPI(title=f"Labels of {task.name}", version="1", docs_url=None, redoc_url=None)
    metrics = Metrics(["/", "/predict", "/health", "/metrics", "/openapi.json"])
    paths = [spec.path for spec in task.fields.values()]
    html = serve_page(task.name, paths, settings.request_rows)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        return _refusal(error)

    @app.post("/predict", responses=_REFUSED)
    async def predict(sent: Rows, request: Request) -> Answer:
        """Label rows."""
        if (says := repeated_key(await request.body())) is not None:
            raise HTTPException(422, f"the body: {shown(says)}")
        if len(sent.rows) > settings.request_rows:
            says = f"{len(sent.rows)} rows in one request, of at most {settings.request_rows}; send fewer at a time"
            raise HTTPException(413, says)
        rows = _rows(sent.rows, task, paths)
        answers = await _answers(batches, rows, settings.timeout_s) if rows else []
        metrics.rows += len(rows)
        return Answer(task=task.name, predictions=[_labelled(answer, sent.alternatives) for answer in answers])

    @app.get("/health", responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Say whether requests are answered."""
        is_well = batches.is_answering
        found = Health(status="ok" if is_well else "ending", task=task.name)
        return JSONResponse(found.model_dump(), 200 if is_well else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def counts() -> PlainTextResponse:
        """Return counts and times for Prometheus."""
        return PlainTextResponse(metrics.text(batches.waiting), media_type=CONTENT_TYPE)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """Return a page to try rows on."""
        return HTMLResponse(html)

    return Guard(app, metrics, body_bytes=int(settings.body_mb * _MEGABYTE), timeout_s=settings.timeout_s)


def _rows(sent: Sequence[dict[str, Any] | str], task: TaskConfig, paths: Sequence[str]) -> list[TaskRow]:
    """Read rows as the task has them. Raises HTTPException (422) that names the first row that cannot be."""
    found = []
    for number, row in enumerate(sent, start=1):
        if isinstance(row, str) and len(paths) > 1:
            _refuse_row(f"request, row {number}: is a text, and task '{task.name}' has {len(paths)} fields; send an object with "
                        f"{', '.join(paths)}")  # fmt: skip
        record = {paths[0]: row} if isinstance(row, str) else row
        try:
            found.append(row_from(record, task, "request", number, "row", reads_label=False))
        except DataError as error:
            _refuse_row(str(error))
    return found


def _refuse_row(says: str) -> NoReturn:
    raise HTTPException(422, shown(says)) from None


async def _answers(batches: Batches, rows: Sequence[TaskRow], timeout_s: float) -> list[Prediction]:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(batches.submit(rows)), timeout_s)
    except QueueFull as error:
        raise HTTPException(503, str(error), _RETRY) from None
    except TimeoutError:
        raise HTTPException(504, f"there was no answer within {timeout_s:g} seconds; send fewer rows, or try later") from None
    except DataError as error:
        raise HTTPException(422, str(error)) from None
    except Exception as error:
        raise HTTPException(500, f"these rows could not be answered ({type(error).__name__})") from None


def _labelled(answer: Prediction, most: int) -> Labelled:
    others = sorted((pair for pair in answer.probabilities.items() if pair[0] != answer.label), key=lambda pair: -pair[1])
    return Labelled(
        label=answer.label,
        probability=answer.probabilities[answer.label],
        alternatives=[Alternative(label=label, probability=probability) for label, probability in others[:most]],
        probabilities=answer.probabilities,
        cut=answer.is_cut,
    )


def _refusal(error: RequestValidationError) -> JSONResponse:
    """Say in one line, without what was sent, where a body is not as it should be."""
    first = error.errors()[0]
    place: Sequence[Any] = first["loc"][1:]
    if first["type"] == "json_invalid":
        return JSONResponse({"detail": f"the body is no JSON: {shown(str(first['ctx']['error']))} at character {place[0]}"}, 400)
    if len(place) > 1 and place[0] == "rows":
        return JSONResponse({"detail": f"request, row {int(place[1]) + 1}: is neither an object nor a text"}, 422)
    where = f"'{shown(str(place[0]))}': " if place else "the body: "
    expected = ' (expected: a JSON object {"rows": [...]} with content-type application/json)' if not place else ""
    return JSONResponse({"detail": f"{where}{shown(first['msg'])}{expected}"}, 422)
