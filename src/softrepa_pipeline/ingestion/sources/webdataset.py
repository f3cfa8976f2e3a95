"""WebDataset tars, read as a stream: no member is ever written to disk or given to a decoder of code."""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from softrepa_pipeline.ingestion.sources.base import (
    IMAGE_SUFFIXES,
    RawSample,
    Shard,
    caption_lines,
    key_of,
    sample_of,
    stamp,
)

DESCRIPTION = (
    "a WebDataset .tar or a folder of *.tar (an image and its .txt, .caption, .captions or .json share a name up to "
    "the first dot, one after the other)"
)
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".captions"})
_READ_SUFFIXES = IMAGE_SUFFIXES | _TEXT_SUFFIXES | {".json"}
_PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".pyd", ".pth", ".pt", ".ckpt", ".joblib", ".dill"})


@dataclass(frozen=True)
class _Member:
    """A file of the tar, by the name that its sample's members share; `data` is None where it is too large to read."""

    sample: str
    suffix: str
    size: int
    data: bytes | None


@dataclass
class _Group:
    """The members of one sample, as they come."""

    name: str = ""
    images: list[_Member] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    problem: str = ""

    def add(self, member: _Member, max_bytes: int) -> None:
        if member.suffix in IMAGE_SUFFIXES:
            self.images.append(member)
        if member.data is None:
            self.problem = f"more than {max_bytes} bytes"
        elif member.suffix in _TEXT_SUFFIXES:
            self._take(caption_lines(member.data), "captions are not UTF-8")
        elif member.suffix == ".json":
            self._take(_json_captions(member.data), "captions are not JSON in UTF-8")

    def _take(self, captions: tuple[str, ...] | None, problem: str) -> None:
        self.captions += captions or ()
        self.problem = problem if captions is None else self.problem

    def samples(self) -> Iterator[RawSample]:
        """The sample, if there is one, and images that it has no place for."""
        if self.name and not self.images:
            yield RawSample(self.name, b"", (), self.problem or "no image")
        for image in self.images[:1]:
            name = image.sample + image.suffix
            yield RawSample(name, image.data or b"", tuple(self.captions), self.problem, image.size)
        for image in self.images[1:]:
            yield RawSample(image.sample + image.suffix, b"", (), "second image of a sample", image.size)


@dataclass(frozen=True)
class TarShard:
    """One tar, whole: a stream has no other places to begin."""

    key: str
    file: Path

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        group = _Group()
        for member in self._members(max_bytes):
            if isinstance(member, RawSample):
                yield member
                continue
            if member.sample != group.name:
                yield from group.samples()
                group = _Group(member.sample)
            group.add(member, max_bytes)
        yield from group.samples()

    def _members(self, max_bytes: int) -> Iterator[_Member | RawSample]:
        """Members of samples, and those that are refused."""
        try:
            with tarfile.open(self.file, "r|*") as archive:
                while member := archive.next():
                    archive.members.clear()  # type: ignore[attr-defined]  # which would grow with the tar
                    name = f"{self.file.name}:{member.name}"
                    if problem := _refusal(member):
                        yield RawSample(name, b"", (), problem, member.size)
                    elif member.isreg():
                        stem, suffix = _split(member.name)
                        is_read = suffix in _READ_SUFFIXES and member.size <= max_bytes
                        file = archive.extractfile(member) if is_read else None
                        data = file.read() if file else None if suffix in _READ_SUFFIXES else b""
                        yield _Member(f"{self.file.name}:{stem}", suffix, member.size, data)
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError):
            yield RawSample(self.file.name, b"", (), "damaged tar file")


def find(source: str) -> list[Shard] | None:
    path = Path(source)
    files = sorted(path.glob("[!.]*.tar")) if path.is_dir() else [path]
    if not files or not all(file.name.endswith((".tar", ".tar.gz", ".tgz")) for file in files):
        return None
    return [TarShard(key_of(file.name, stamp(file)), file) for file in files]


def _refusal(member: tarfile.TarInfo) -> str:
    """Why a member is not even looked at, or nothing."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "member's name leaves the archive"
    if member.issym() or member.islnk():
        return "member is a link"
    if not (member.isreg() or member.isdir()):
        return "member is not a file"
    return "member is a pickle" if path.suffix.lower() in _PICKLE_SUFFIXES else ""


def _split(name: str) -> tuple[str, str]:
    """`dir/0001.seg.png` as (`dir/0001`, `.seg.png`): a sample's name ends at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _json_captions(data: bytes) -> tuple[str, ...] | None:
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    sample = sample_of("", None, record) if isinstance(record, dict) else None
    return sample.captions if sample and not sample.problem else None
