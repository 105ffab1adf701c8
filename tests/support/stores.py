"""A store with artifacts of one small file each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact, ArtifactStore, StageKey


def made_in(root: Path, stage: str, config: int = 0, link: str | None = None, **inputs: Artifact) -> Artifact:
    def build(result: Path, work: Path) -> Mapping[str, Any]:
        (result / "weights").write_text(f"{stage} {config}", encoding="utf-8")
        return {}

    store = ArtifactStore(root)
    artifact, _ = store.produce(StageKey(stage=stage, config=config, inputs=inputs), build, force=False, created=lambda: "now")
    if link is not None:
        store.link(link, artifact)
    return artifact
