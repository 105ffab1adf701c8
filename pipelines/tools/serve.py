"""An export that answers over HTTP: `python -m pipelines.serve checkpoint=<export>`."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from adapt.core.errors import ConfigError
from adapt.model.config import HFConfig
from pipelines.config.schema import PipelineConfig

logger = logging.getLogger("pipelines")
_NEEDED = ("fastapi", "uvicorn", "starlette", "pydantic")


def run(config: PipelineConfig, point: str | None) -> None:
    """Serve until SIGTERM (exit code 0) or Ctrl-C (130).

    Raises:
        ConfigError: no export is given, the extra `serve` is not installed, or the address cannot be listened on.
        CheckpointError: it is no export, or it is damaged.
    """
    try:
        from pipelines.serving.server import listening, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _NEEDED:
            raise
        raise ConfigError(f"serve: {error.name} is not installed; run `pip install 'moe-adapt[serve]'`") from error
    if config.checkpoint is None:
        raise ConfigError("checkpoint: is missing; give checkpoint=DIR, an export of stage export")
    from pseudo_label.predictor import load

    base = Path(config.model.path) if isinstance(config.model, HFConfig) else None
    with listening(config.serve) as bound:  # before anything is loaded
        predictor = load(config.checkpoint, config.scorer, config.offload, base)
        stopped_by = serve(predictor, config.serve, bound)
    logger.info("serve: ended; everything that had come was answered")
    if stopped_by == signal.SIGINT:
        sys.exit(128 + signal.SIGINT)
