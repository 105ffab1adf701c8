"""The trackers there are, opened by the settings; rank 0 has one, the others track nothing."""

from __future__ import annotations

from adapt.core.errors import ConfigError
from adapt.train.guarded_tracker import GuardedTracker
from adapt.train.tensorboard_tracker import TensorBoardTracker, is_installed
from adapt.train.tracking import NoTracker, RunIdentity, Tracker, TrackerConfig, TrackerKind


def check_tracker(config: TrackerConfig) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    if config.kind is TrackerKind.TENSORBOARD and not is_installed():
        raise ConfigError("tracker=tensorboard: is not installed; run `pip install 'moe-adapt[tensorboard]'`")


def open_tracker(config: TrackerConfig, identity: RunIdentity, is_main: bool) -> Tracker:
    """Open the tracker that the settings ask for; ranks other than 0 get one that tracks nothing.

    A tracker that fails, then or later, says so once and is asked no more.

    Raises:
        ConfigError: its package is not installed.
    """
    check_tracker(config)
    if not is_main or config.kind is TrackerKind.NONE:
        return NoTracker()
    return GuardedTracker(lambda: _opened(config, identity), config.kind.value, identity.directory / config.kind.value)


def _opened(config: TrackerConfig, identity: RunIdentity) -> Tracker:
    if config.kind is TrackerKind.WANDB:
        from adapt.train.wandb_tracker import (
            WandbTracker,  # imports wandb, which starts threads that an untracked run does not want
        )

        return WandbTracker(config, identity)
    return TensorBoardTracker(identity)
