"""What a command does to the project's loggers ends with the test that ran it."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from adapt.core.runtime import set_up_logging
from tests.support.loggers import kept_loggers


def test_a_log_line_behind_a_command_goes_where_it_went_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = io.StringIO()
    with kept_loggers(), monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        set_up_logging()
        logging.getLogger("pipelines").info("during")
    assert stream.getvalue() == "during\n"
    stream.close()
    logging.getLogger("pipelines").warning("behind")
    assert [record.getMessage() for record in caplog.records] == ["behind"]
