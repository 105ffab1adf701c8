"""Hugging Face tokenizers (`tokenizer.json`): the only file that imports the package tokenizers, and only once one is opened.

A document is encoded as its tokenizer encodes it, and starts with the token that its tokenizer puts before a text. Where it puts
none, `<|endoftext|>` starts documents, or else the token named as document start, or as end. `text_encoding.json` beside the
tokenizer records both, and `start` in it names another token. An artifact without that file was made when parts of a prompt were
encoded on their own behind the named document start; it is read so.

A piece of text is encoded as the continuation of another. Some families put a space before every text (Llama 2, Mistral: a
`Prepend` normalizer or `Metaspace`; some byte-level ones: `add_prefix_space`). For pieces that is switched off in the description
that the tokenizer is built from, and then checked: behind an anchor (a line break, a full stop, ...) the unchanged tokenizer must
give the same tokens. A tokenizer that agrees behind no anchor is refused.

Special tokens are looked for in `tokenizer_config.json`, `special_tokens_map.json` and `config.json`, in this order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from adapt.core.artifacts import MANIFEST
from adapt.core.errors import CheckpointError, ConfigError, DataError
from adapt.core.json_files import parsed_json
from adapt.text.contract import ChatForm, EncodedText, WholeEncoder

TOKENIZER_FILE = "tokenizer.json"
ENCODING_FILE = "text_encoding.json"
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    *_SETTINGS_FILES,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    ENCODING_FILE,
)
_OTHER_FORMS = ("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")
_END_OF_TEXT = "<|endoftext|>"
_MASK = "<mask>"
_ANCHORS = ("\n", "。", ".", "0", "a")
_PROBES = ("好", "a", "1", "，", "好的 a")


class HFTokenizer:
    """A `TextTokenizer` over a `tokenizer.json`. No text can produce an added token that marks something.

    `is_recorded` says that files without a record of the encoding come from an artifact, which then is one that joins parts.
    """

    def __init__(
        self, files: Mapping[str, bytes], model_config: Mapping[str, Any], source: str, *, is_recorded: bool = False
    ) -> None:
        self.source = source
        self._files = dict(files)
        self._model_config = dict(model_config)
        described = _parsed(files[TOKENIZER_FILE], source)
        original, self._tokenizer = _built(described, source), _built(without_prefix(described), source)
        _check_continuation(original, self._tokenizer, source)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        settings = [_parsed(files[name], source) for name in _SETTINGS_FILES if name in files]
        if any(asks_for_code(one) for one in settings):
            raise CheckpointError(
                f"{source}: its settings ask for code of their own (auto_map), which is never run; take auto_map out"
            )
        special = _SpecialTokens(vocabulary, settings, model_config)
        eos_id, bos_id = special.id_of("eos"), special.id_of("bos")
        if bos_id is None:
            bos_id = vocabulary.get(_END_OF_TEXT, eos_id)
        if bos_id is None:
            raise CheckpointError(f"{source}: names no token to start or end a document (bos_token, eos_token)")
        self.bos_id: int = bos_id
        self.eos_id: int = bos_id if eos_id is None else eos_id
        self._document: Any | None = None
        self._chats: dict[str | None, ChatForm] = {}
        if ENCODING_FILE in files or not is_recorded:
            self.bos_id = self._start(described, settings, special.id_of("bos"), vocabulary)
        self.unk_id = special.id_of("unk", described.get("model", {}).get("unk_token"))
        self.mask_id = special.id_of("mask", _MASK)
        pad_id = special.id_of("pad")
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        described = _with_special_marks(described, {bos_id, self.bos_id, self.eos_id, self.pad_id, self.mask_id})
        added = described.get("added_tokens") or []
        self.marks = frozenset(str(token.get("content")) for token in added if token.get("special") and token.get("content"))
        self._described = described
        self._tokenizer = _built(without_prefix(described), source)
        if ENCODING_FILE in self._files:
            self._document = _built({**described, "post_processor": None}, source)

    @classmethod
    def load(cls, directory: Path) -> HFTokenizer:
        """Load the tokenizer of a Hugging Face directory that has a `tokenizer.json`.

        Raises:
            ConfigError: the package tokenizers is not installed.
            CheckpointError: it is damaged, has no document start, or its prefix could not be switched off.
        """
        files = {name: (directory / name).read_bytes() for name in TOKENIZER_FILES if (directory / name).is_file()}
        source = str(directory / TOKENIZER_FILE)
        if TOKENIZER_FILE not in files:
            raise CheckpointError(f"{source}: no such tokenizer")
        config = directory / "config.json"
        parsed = _parsed(config.read_bytes(), str(config)) if config.is_file() else {}
        return cls(files, parsed, source, is_recorded=(directory / MANIFEST).is_file())

    @property
    def files(self) -> dict[str, bytes]:
        """The files that `save` writes, by name."""
        return dict(self._files)

    def save(self, directory: Path) -> None:
        for name, content in self._files.items():
            (directory / name).write_bytes(content)

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for name, content in sorted(self._files.items()):
            digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text as the continuation of another; the empty text gives an empty list."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        tokenizer = self._document or self._tokenizer
        return [list(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    def encode_words(self, texts: list[str]) -> list[list[list[int]]]:
        """Return the tokens of documents as `encode_documents` does, cut where no merge reaches over."""
        found = []
        for encoding in (self._document or self._tokenizer).encode_batch(texts, add_special_tokens=False):
            words = groupby(zip(encoding.word_ids, encoding.ids, strict=True), key=lambda one: one[0])
            found.append([[token for _, token in word] for _, word in words])
        return found

    @property
    def description(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        return _parsed(self._files[TOKENIZER_FILE], self.source)

    def described_as(self, description: Mapping[str, Any]) -> HFTokenizer:
        """Return the tokenizer with another `tokenizer.json`; files that repeat its vocabulary in other forms are left out."""
        kept = {name: content for name, content in self._files.items() if name not in _OTHER_FORMS}
        text = json.dumps(description, ensure_ascii=False)
        is_recorded = ENCODING_FILE not in kept
        return HFTokenizer({**kept, TOKENIZER_FILE: text.encode()}, self._model_config, self.source, is_recorded=is_recorded)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token, added ones included, as it is written in the files."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return found

    @property
    def whole(self) -> WholeEncoder | None:
        return None if self._document is None else self._encode_whole

    def _encode_whole(self, texts: Sequence[str]) -> list[EncodedText]:
        assert self._document is not None
        return _encoded(self._document, texts)

    def chat(self, system: str | None) -> ChatForm:
        """Return the form of a conversation, as the base's chat template writes it.

        Raises:
            ConfigError: there is no template, it cannot write such a conversation, or texts are not encoded as one.
        """
        if system not in self._chats:
            self._chats[system] = self._chat(system)
        return self._chats[system]

    def _chat(self, system: str | None) -> ChatForm:
        from adapt.text.chat_template import codes, frame_of, recoded, special_names, template_in, with_codes

        template = template_in(self._files)
        if template is None or self._document is None:
            lacks = "has no chat template" if template is None else f"encodes parts of a prompt apart (no {ENCODING_FILE})"
            mend = "leave chat out of the prompt, or take an instruction-tuned base"
            raise ConfigError(f"{Path(self.source).parent}: {lacks}; {mend}")
        settings = [_parsed(self._files[name], self.source) for name in _SETTINGS_FILES if name in self._files]
        where = f"{Path(self.source).parent}, chat template"
        frame = frame_of(template, special_names(settings), system, where)
        written = frame.before + frame.after
        marks = sorted(mark for mark in self.marks if mark in written)
        coder = _built({**with_codes(self._described, marks), "post_processor": None}, self.source)
        vocabulary = coder.get_vocab(with_added_tokens=True)
        meant = {vocabulary[code]: vocabulary[mark] for code, mark in zip(codes(marks), marks, strict=True)}
        before, after = recoded(frame.before, marks), recoded(frame.after, marks)
        n_marks = sum(token in meant for token in coder.encode(before + "a" + after, add_special_tokens=False).ids)

        def encode(texts: Sequence[str]) -> list[EncodedText]:
            found = _encoded(coder, texts)
            for one in found:
                if sum(token in meant for token in one.ids) > n_marks:
                    raise DataError(f"a text repeats the private character {codes(marks)[0][0]!r} or its like; take it out")
            return [replace(one, ids=[meant.get(token, token) for token in one.ids]) for one in found]

        plain = _built({**self._described, "post_processor": None}, self.source)
        plain.encode_special_tokens = False
        if plain.encode(f"{frame.before}a{frame.after}a", add_special_tokens=False).ids != encode([f"{before}a{after}a"])[0].ids:
            raise ConfigError(f"{where}: its special tokens are read otherwise inside a text; leave chat out of the prompt")
        return ChatForm(
            before=frame.before, after=frame.after, gap=frame.gap, coded_before=before, coded_after=after, encode=encode
        )

    def _start(
        self, described: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], bos_id: int | None, vocabulary: Mapping[str, int]
    ) -> int:
        """Return the token that starts documents, and record it among the files.

        Raises:
            CheckpointError: the record names a token that is not there, or the tokenizer puts several tokens before a text.
        """
        if ENCODING_FILE in self._files:
            place = str(Path(self.source).parent / ENCODING_FILE)
            token = _parsed(self._files[ENCODING_FILE], place).get("start")
            if not isinstance(token, str) or token not in vocabulary:
                raise CheckpointError(f"{place}: start is {token!r}, which is no token of {self.source}; name one that is")
            return vocabulary[token]
        lead = self._lead(described, settings, bos_id)
        if len(lead) > 1:
            raise CheckpointError(f"{self.source}: puts {len(lead)} tokens before a text; only one can start a document")
        start = lead[0] if lead else vocabulary.get(_END_OF_TEXT, self.bos_id)
        token = next(token for token, number in vocabulary.items() if number == start)
        self._files[ENCODING_FILE] = (json.dumps({"start": token}, ensure_ascii=False) + "\n").encode()
        return start

    def _lead(self, described: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], bos_id: int | None) -> list[int]:
        """Return the tokens that the tokenizer, as other programs open it, puts before a text."""
        if any(one.get("add_bos_token") is False for one in settings):
            return []
        lead = _tokens_put_before(_built(described, self.source))
        if not lead and bos_id is not None and any(one.get("add_bos_token") is True for one in settings):
            return [bos_id]
        return lead

    @property
    def start_as_text(self) -> str:
        """What must be written before a text for other programs to start it as here; nothing where they do by themselves."""
        settings = [_parsed(self._files[name], self.source) for name in _SETTINGS_FILES if name in self._files]
        special = _SpecialTokens(self.vocabulary, settings, self._model_config)
        is_put = self._lead(self.description, settings, special.id_of("bos")) == [self.bos_id]
        return "" if is_put else next(token for token, number in self.vocabulary.items() if number == self.bos_id)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [str(self._tokenizer.id_to_token(int(i))) for i in ids]


class _SpecialTokens:
    """Finds special tokens by role: as a token under `<role>_token`, a usual one, or an id under `<role>_token_id` of the model."""

    def __init__(self, vocabulary: Mapping[str, int], settings: list[dict[str, Any]], model_config: Mapping[str, Any]) -> None:
        self._vocabulary = vocabulary
        self._settings = settings
        self._model_config = model_config

    def id_of(self, role: str, else_token: str | None = None) -> int | None:
        for settings in [*self._settings, {f"{role}_token": else_token}]:
            token = settings.get(f"{role}_token")
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str) and token in self._vocabulary:
                return self._vocabulary[token]
        number = self._model_config.get(f"{role}_token_id")
        if isinstance(number, list) and number:
            number = number[0]
        return number if isinstance(number, int) and number in self._vocabulary.values() else None


def without_prefix(described: Any) -> Any:
    """Return a tokenizer's description with nothing put before a text, and nothing taken away when ids are decoded."""
    if isinstance(described, list):
        return [without_prefix(item) for item in described if not (isinstance(item, dict) and item.get("type") == "Prepend")]
    if not isinstance(described, dict):
        return described
    if described.get("type") == "Prepend":
        return None
    changed = {key: value if key in ("model", "added_tokens") else without_prefix(value) for key, value in described.items()}
    kind = described.get("type")
    if kind == "Metaspace":
        changed["prepend_scheme"] = "never"
        changed.pop("add_prefix_space", None)
    elif kind == "ByteLevel":
        changed["add_prefix_space"] = False
    elif kind == "Strip" and "start" in described:  # the decoder's counterpart of a prepended space
        changed["start"] = 0
    return changed


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[EncodedText]:
    return [
        EncodedText(ids=list(found.ids), starts=[s for s, _ in found.offsets], ends=[e for _, e in found.offsets])
        for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def _built(described: Mapping[str, Any], source: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            f"Hugging Face bases need the package tokenizers ({error}); install it with `pip install 'moe-adapt[hf]'`"
        ) from error
    try:
        made = tokenizers.Tokenizer.from_str(json.dumps(described))
    except Exception as error:  # the package raises plain exceptions
        raise CheckpointError(f"{source}: not a tokenizer ({error})") from error
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True  # a text that spells a special token is a text
    return made


def asks_for_code(settings: Mapping[str, Any]) -> bool:
    """Say whether settings of a Hugging Face directory, or a section of them, name code of the directory to be run."""
    return any("auto_map" in one for one in [settings, *(inner for inner in settings.values() if isinstance(inner, dict))])


def _with_special_marks(described: Mapping[str, Any], marks: set[int | None]) -> dict[str, Any]:
    """Return a description whose marks of documents no text produces, though its file may call them plain added tokens."""
    added = described.get("added_tokens") or []
    changed = [{**token, "special": token.get("special") or token.get("id") in marks} for token in added]
    return {**described, "added_tokens": changed} if added else dict(described)


def _tokens_put_before(tokenizer: Any) -> list[int]:
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    return next((full[:n] for n in range(len(full)) if full[n : n + len(plain)] == plain), [])


def _check_continuation(original: Any, made: Any, source: str) -> None:
    for probe in _PROBES:
        expected = made.encode(probe, add_special_tokens=False).ids
        for anchor in _ANCHORS:
            before = original.encode(anchor, add_special_tokens=False).ids
            both = original.encode(anchor + probe, add_special_tokens=False).ids
            if both == before + expected:
                break
        else:
            raise CheckpointError(
                f"{source}: gives '{probe}' other tokens inside a text than at its start, and this could not be switched off; "
                "parts of a prompt could not be joined"
            )


def _parsed(content: bytes, source: str) -> dict[str, Any]:
    try:
        parsed = parsed_json(content)
    except ValueError as error:
        raise CheckpointError(f"{source}: not valid JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{source}: expected a JSON object")
    return parsed
