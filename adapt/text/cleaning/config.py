"""Settings of the corpus stage: how text is normalised, what is dropped, what is masked, and what counts as a repeat."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting, setting_of


class UnicodeForm(enum.Enum):
    """How characters are written: as they are, composed (NFC), or compatibility forms replaced too (NFKC, not reversible)."""

    AS_IS = "as_is"
    NFC = "nfc"
    NFKC = "nfkc"


class Script(enum.Enum):
    """Which Chinese characters are written: as they are, simplified, or traditional."""

    AS_IS = "as_is"
    SIMPLIFIED = "simplified"
    TRADITIONAL = "traditional"


class Language(enum.Enum):
    """A language as its script shows it; a model that tells languages of one script apart is not asked."""

    CHINESE = "zh"
    JAPANESE = "ja"
    KOREAN = "ko"
    LATIN = "latin"
    OTHER = "other"


class Personal(enum.Enum):
    """Kinds of personal data that are masked."""

    ID_NUMBER = "id_number"
    MOBILE = "mobile"
    BANK_CARD = "bank_card"
    PLATE = "plate"
    MAIL = "mail"


BOILERPLATE = (
    "版权所有", "未经授权", "未经许可", "ICP备", "公网安备", "All rights reserved", "扫码关注", "长按二维码", "微信公众号",
    "责任编辑", "上一篇", "下一篇", "返回顶部", "返回首页", "点击查看", "点击下载", "免责声明", "设为首页", "加入收藏",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NormaliseConfig(Settings):
    """How text is rewritten before anything looks at it."""

    unicode: UnicodeForm = setting(
        UnicodeForm.AS_IS, "How characters are written; nfkc makes full-width signs half-width and cannot be undone."
    )
    script: Script = setting(Script.AS_IS, "Which Chinese characters are written; the others are converted by OpenCC.")
    cleans_lines: bool = setting(
        True, "Takes out control and zero-width characters, makes line ends \\n, and trims lines; empty lines become one."
    )
    keeps_original: bool = setting(False, "Keeps the text as it was read in a field `original` where it was changed.")


@dataclass(frozen=True, kw_only=True)
class QualityConfig(Settings):
    """Which documents are dropped for what they look like. A share is one of the characters that are no white space."""

    languages: list[Language] = setting_of(
        lambda: [Language.CHINESE], "Languages that are kept, as scripts show them.", hint="an empty list keeps all"
    )
    min_characters: int = setting(4, "Shortest document.", least=0, unit="characters")
    max_characters: int = setting(1_000_000, "Longest document.", least=1, unit="characters")
    min_han_share: float = setting(0.3, "Least share of Chinese characters.", least=0, most=1)
    max_punctuation_share: float = setting(0.4, "Largest share of punctuation and symbols.", least=0, most=1)
    max_digit_share: float = setting(0.5, "Largest share of digits.", least=0, most=1)
    max_garbled_share: float = setting(
        0.02, "Largest share of U+FFFD, controls, private-use characters and signs of a wrong decoding.", least=0, most=1
    )
    max_repeated_lines: float = setting(
        0.5, "Largest share of lines that stand there before, in documents of four lines or more.", least=0, most=1
    )
    max_repeated_ngrams: float = setting(
        0.5, "Largest share of 10-grams of characters that stand there before, in documents of 100 or more.", least=0, most=1
    )
    max_mixed_script: float | None = setting(
        None,
        "Largest share, among Chinese characters that differ, of the rarer of traditional and simplified.",
        least=0,
        most=0.5,
        hint="null does not ask; it needs OpenCC",
    )
    boilerplate: list[str] = setting_of(
        lambda: list(BOILERPLATE), "Phrases of which a line of at most 60 characters is taken out.", hint="an empty list takes none"
    )


@dataclass(frozen=True, kw_only=True)
class OverlapConfig(Settings):
    """Evaluation texts that no document may share a passage with; width, case, punctuation and spaces do not count."""

    files: list[str] = setting_of(list, "Files of evaluation rows, or patterns; every text in a row counts.", form="files")
    characters: int = setting(24, "Letters, digits and Chinese characters in a row that are a shared passage.", least=8)
    shortest: int = setting(
        10, "Shorter evaluation texts than a passage count from here if a document contains all of one.", least=8
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest > self.characters:
            raise ConfigError("shortest: must not be more than characters")


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig(Settings):
    """Which repeats are dropped. Two documents with share s of common n-grams meet with chance 1-(1-s^rows)^buckets."""

    exact: bool = setting(True, "Drops all but the first file's of documents that are equal but for width, case, signs and spaces.")
    near: bool = setting(True, "Drops all but one of documents that are alike, by MinHash.")
    ngram: int = setting(5, "Characters of an n-gram of MinHash.", least=2)
    buckets: int = setting(14, "Buckets of MinHash.", least=1)
    rows: int = setting(8, "Hashes of a bucket of MinHash.", least=1)


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig(Settings):
    """Which documents are dropped for their loss under a base, in nats a character; shares are those of a domain's documents."""

    checkpoint: str | None = setting(
        None,
        "Base whose loss on documents decides, after repeats are dropped.",
        form="artifact, export, checkpoint or Hugging Face directory",
        hint="null asks none",
    )
    tokens: int = setting(256, "Tokens of a document that the base reads, at its beginning.", least=2, unit="tokens")
    lowest_share: float = setting(0.0, "Share of a domain's documents with the lowest losses that is dropped.", least=0, below=1)
    highest_share: float = setting(0.05, "Share of a domain's documents with the highest losses that is dropped.", least=0, below=1)
    min_nats: float | None = setting(None, "Least loss of a document.", least=0, unit="nats a character", hint="null sets no bound")
    max_nats: float | None = setting(
        None, "Largest loss of a document.", above=0, unit="nats a character", hint="null sets no bound"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowest_share + self.highest_share >= 1:
            raise ConfigError("lowest_share and highest_share: together they drop everything; lower one of them")
        if self.min_nats is not None and self.max_nats is not None and self.min_nats >= self.max_nats:
            raise ConfigError("min_nats: must be less than max_nats")


class Executor(enum.Enum):
    """Where passes run: on this machine, as jobs of a Slurm cluster, or on a Ray cluster."""

    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(Settings):
    """What jobs of a cluster ask for; each element of a job is a file, or a bucket of MinHash."""

    partition: str | None = setting(None, "Partition of the jobs.", form="name", hint="null takes the cluster's default")
    time: str = setting("24:00:00", "Longest time of a file.", form="hours:minutes:seconds")
    cpus_per_task: int = setting(1, "Cores of a file; only a base that is asked for losses uses several.", least=1, unit="cores")
    memory_gb_per_cpu: int = setting(2, "Memory of each core.", least=1, unit="GB")
    options: dict[str, str] = setting_of(dict, "Further options of sbatch, by name without dashes.", form="value")


@dataclass(frozen=True, kw_only=True)
class RayConfig(Settings):
    """Which Ray cluster is asked, and for what; each task is a file, or a bucket of MinHash."""

    address: str | None = setting(
        None,
        "Address of the cluster's head.",
        form="host:port",
        hint="null takes that of RAY_ADDRESS, and starts a cluster on this machine where there is none",
    )
    cpus_per_task: int = setting(
        1, "Cores that a task on Ray asks for; only a base that is asked for losses uses several.", least=1, unit="cores"
    )
    memory_gb_per_cpu: int = setting(1, "Memory that a task on Ray asks for, for each core.", least=1, unit="GB")

    def __post_init__(self) -> None:
        super().__post_init__()
        host, _, port = (self.address or "host:0").rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"address: '{self.address}' is not host:port, as in 10.0.0.1:6379")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(Settings):
    """Raw text to a corpus: `data.corpus` in, shards out."""

    normalise: NormaliseConfig = setting_of(NormaliseConfig, "How text is rewritten.")
    quality: QualityConfig = setting_of(QualityConfig, "Which documents are dropped for what they look like.")
    personal_data: list[Personal] = setting_of(lambda: list(Personal), "Kinds of personal data that are masked.")
    overlap: OverlapConfig = setting_of(OverlapConfig, "Evaluation texts that are kept out.")
    duplicates: DuplicatesConfig = setting_of(DuplicatesConfig, "Which repeats are dropped.")
    perplexity: PerplexityConfig = setting_of(PerplexityConfig, "Which documents are dropped for their loss under a base.")
    samples: int = setting(5, "Dropped documents of each filter that the page shows.", least=0, unit="documents")
    shard_mb: int = setting(64, "Text of a shard, before it is packed.", least=1, unit="MB")
    workers: int = setting(1, "Files that are cleaned side by side, each by a process of some 300 MB.", least=1)
    executor: Executor = setting(
        Executor.LOCAL, "Where files are cleaned: on this machine, as jobs of a Slurm cluster, or on a Ray cluster."
    )
    slurm: SlurmConfig = setting_of(SlurmConfig, "What jobs of a cluster ask for, with corpus.executor=slurm.")
    ray: RayConfig = setting_of(RayConfig, "Which cluster is asked, with corpus.executor=ray.")
