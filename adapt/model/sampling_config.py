"""Settings of how a next token is chosen and where a text ends; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting, setting_of


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """How the next token follows from logits: the likeliest one, or one drawn from what `top_k` and `top_p` leave."""

    temperature: float | None = setting(
        None,
        "Logits are divided by it before a token is drawn.",
        above=0,
        hint="null draws nothing and takes the likeliest token (greedy); 1 draws from the model's own distribution",
    )
    top_k: int | None = setting(None, "Draws among so many of the likeliest tokens.", least=1, unit="tokens", hint="null: all")
    top_p: float | None = setting(
        None,
        "Draws among the likeliest tokens that together have this probability.",
        above=0,
        most=1,
        hint="null: all; where top_k is set too, it cuts first",
    )
    repetition_penalty: float = setting(
        1.0, "Makes tokens that stand in the prompt or the text less likely; 1 does not.", above=0, hint="1.1 to 1.3 are usual"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "top_p"):
            if self.temperature is None and getattr(self, name) is not None:
                raise ConfigError(f"{name}: is for tokens that are drawn; set temperature too (1 keeps the model's distribution)")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(SamplingConfig):
    """How texts go on: how tokens are chosen, where a text ends, and how many grow together."""

    max_tokens: int = setting(128, "Most tokens that are added to a prompt; the context may end before.", least=1, unit="tokens")
    stop: list[str] = setting_of(
        list, "Texts before which a continuation ends; it ends at the end token in any case.", form="texts"
    )
    batch_rows: int = setting(
        16, "Most prompts, of about one length, that grow together: speed and memory.", least=1, unit="prompts"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" in self.stop:
            raise ConfigError("stop: has an empty text, before which every continuation would end; take it out")
