"""Settings of `pipelines.serve`: where it listens, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Settings):
    """Answering over HTTP with an export."""

    host: str = setting("127.0.0.1", "Address to listen on; 127.0.0.1 takes requests of this machine only.", form="address")
    port: int = setting(8000, "Port to listen on.", least=0, most=65535, hint="0 takes a free one, which is printed")
    body_mb: float = setting(1.0, "Largest body of a request; a larger one is answered with 413.", above=0, unit="megabytes")
    request_rows: int = setting(512, "Most rows of one request; more are answered with 413.", least=1, unit="rows")
    queue_rows: int = setting(
        2048, "Most rows that wait over all requests; a request that would make more is answered with 503.", least=1, unit="rows"
    )
    batch_rows: int = setting(64, "Most rows, of one or several requests, that are scored together.", least=1, unit="rows")
    timeout_s: float = setting(
        30.0, "Longest time to receive a request (else 408), and then to answer it (else 504).", above=0, unit="seconds"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.request_rows > self.queue_rows:
            raise ConfigError(
                f"queue_rows: is {self.queue_rows}, and one request may have {self.request_rows} rows (request_rows); raise it"
            )
