"""Commands that turn what people have of a Hugging Face model into a directory that works, for messages. Nothing runs them here.

Each runs transformers or PEFT, which loads pickles as tensors only, and no code of the directory.
"""

from __future__ import annotations

from pathlib import Path


def command_from_pickles(directory: Path) -> str:
    """Return the commands that write a directory with pickled weights as one with safetensors."""
    made = f"{directory}-safe"
    written = f"M.from_pretrained('{directory}', dtype='auto').save_pretrained('{made}')"
    script = f"from transformers import AutoModelForCausalLM as M; {written}"
    return f'`python -c "{script}" && cp {directory}/*token* {made}` makes {made}, which works'


def command_for_tokenizer(directory: Path) -> str:
    """Return the command that writes a `tokenizer.json` into a directory that has its tokenizer in an older form."""
    script = f"from transformers import AutoTokenizer as T; T.from_pretrained('{directory}').save_pretrained('{directory}')"
    return f'`python -c "{script}"` writes tokenizer.json there'


def command_to_fetch_tokenizer(directory: Path) -> str:
    """Return the command that fetches a tokenizer into a directory that has none."""
    fetched = f"`hf download NAME --include 'tokenizer*' --include 'special_tokens_map.json' --local-dir {directory}`"
    return f"{fetched} fetches it from the hub, or copy the files tokenizer* from where the model came"


def command_to_merge(directory: Path) -> str:
    """Return the command that merges a PEFT adapter into its base, and what is still to be copied."""
    made = f"{directory}-merged"
    script = (
        f"from peft import AutoPeftModelForCausalLM as M; "
        f"M.from_pretrained('{directory}', dtype='auto').merge_and_unload().save_pretrained('{made}')"
    )
    return f'`python -c "{script}"` makes {made}, which works once its base\'s tokenizer.json lies there'
