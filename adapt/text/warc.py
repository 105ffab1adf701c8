"""Plain text in WARC files, as crawls publish it: WET files, whose records of type `conversion` hold the text of a page each.

Pages of HTML are refused: what of a page is text is a question of its own, which extractors (trafilatura, resiliparse) answer. The
records are read by warcio.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapt.core.errors import ConfigError, DataError

WARC_ENDINGS = (".warc", ".warc.gz", ".wet", ".wet.gz")


def is_warc(path: Path) -> bool:
    """Say whether a file's name is that of a WARC file."""
    return path.name.lower().endswith(WARC_ENDINGS) and not path.is_dir()


def texts_of_warc(path: Path) -> Iterator[str]:
    """Yield the non-empty texts of a WARC file's records of plain text.

    Raises:
        ConfigError: the package is not installed.
        DataError: the file is damaged or missing, or holds pages and no text.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise ConfigError(f"{path}: reading WARC needs warcio; pip install 'moe-adapt[corpus]'") from error
    n_texts, n_pages = 0, 0
    try:
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream):
                n_pages += record.rec_type == "response"
                if record.rec_type != "conversion":
                    continue
                n_texts += 1
                text = record.content_stream().read().decode("utf-8", "replace").replace("\x00", "").strip()
                if text:
                    yield text
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ArchiveLoadFailed, EOFError, ValueError) as error:
        raise DataError(f"{path}, after {n_texts} texts: a damaged WARC file ({error})") from error
    if n_pages and not n_texts:
        raise DataError(f"{path}: holds {n_pages} pages and no text; give the crawl's WET file, or extract the text first")
