"""The bad inputs that data in the wild brings: each is survived, nothing is lost, and the quarantine says the truth."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from ingestion_samples import ingest_folder, items, photo, rows, write_parquet, write_sidecars, write_tar, write_tars
from PIL import Image

from softrepa_pipeline.ingestion import iter_pairs, load_rgb


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def with_sample(folder: Path, data: bytes, captions: bytes = b"a caption", name: str = "bad.jpg") -> Path:
    """Ten good samples and this one."""
    write_sidecars(folder, items(10))
    (folder / name).write_bytes(data)
    (folder / name).with_suffix(".txt").write_bytes(captions)
    return folder


BOMB = encoded(Image.new("1", (20_000, 20_000)))
REFUSED: dict[str, tuple[bytes, bytes, str]] = {
    "truncated JPEG": (photo(99)[:900], b"x", "damaged image"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), b"x", "a side below 32 pixels"),
    "PNG bomb": (BOMB, b"x", "more than 64000000 pixels"),
    "no pixels": (b"", b"x", "empty file"),
    "web page": (b"<html>404</html>", b"x", "not an image"),
    "empty caption": (photo(99), b" \n\t", "no caption"),
    "invisible caption": (photo(99), "\u200b\ufeff\x00".encode(), "empty caption"),
    "binary caption": (photo(99), bytes(range(256)), "captions are not UTF-8"),
    "100k-character caption": (photo(99), b"long " * 20_000, "caption longer than 2000 characters"),
    "endless caption": (photo(99), b"long " * 2_000_000, "captions of more than 1048576 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_sample_goes_to_the_quarantine_and_the_good_ones_stay(tmp_path: Path, name: str) -> None:
    data, captions, reason = REFUSED[name]
    source = with_sample(tmp_path / "raw", data, captions)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    manifest = ingest_folder(source, tmp_path / "out")
    assert rows(tmp_path / "out/quarantine.parquet") == [{"file": "bad.jpg", "reason": reason, "bytes": len(data)}]
    assert (manifest["num_samples"], manifest["num_images"], manifest["reasons"]) == (11, 10, {reason: 1})
    assert [pair.image for pair in iter_pairs(tmp_path / "out")] == [image for image, _ in items(10).values()]
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


ODD = {
    "CMYK": (lambda image: encoded(image.convert("CMYK"), "JPEG")),
    "grey": (lambda image: encoded(image.convert("L"))),
    "palette": (lambda image: encoded(image.convert("P", palette=Image.Palette.ADAPTIVE))),
    "transparent": (lambda image: encoded(image.convert("RGBA"))),
    "animated": (lambda image: encoded(image, "GIF")),
    "WebP": (lambda image: encoded(image, "WEBP")),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_images_are_kept_as_they_are_and_decode_to_rgb(tmp_path: Path, name: str) -> None:
    encode: Callable[[Image.Image], bytes] = ODD[name]
    data = encode(Image.fromarray(np.full((40, 48, 3), 90, np.uint8)))
    assert ingest_folder(with_sample(tmp_path / "raw", data), tmp_path / "out")["num_images"] == 11
    (kept,) = (pair for pair in iter_pairs(tmp_path / "out") if pair.captions == ("a caption",))
    assert kept.image == data
    image = load_rgb(data)
    assert (image.mode, image.size) == ("RGB", (48, 40))
    assert np.abs(np.asarray(image).astype(int) - 90).max() < 12


def tar_with(folder: Path, member: tarfile.TarInfo, data: bytes = b"") -> Path:
    """Ten good samples, and a tar that has this member before two more."""
    write_tars(folder, items(10))
    found = items(12)
    with tarfile.open(folder / "99.tar", "w") as archive:
        member.size = len(data)
        archive.addfile(member, BytesIO(data))
        for name in ("0010.jpg", "0011.jpg"):
            for file, content in ((name, found[name][0]), (name.replace("jpg", "txt"), b"a caption")):
                info = tarfile.TarInfo(file)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    return folder


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("link.jpg")
    member.type, member.linkname = kind, target
    return member


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path("/tmp/unpickled").touch, ()  # type: ignore[return-value]


MEMBERS = {
    "parent": (tarfile.TarInfo("../escaped.jpg"), photo(0), "member's name leaves the archive"),
    "hidden parent": (tarfile.TarInfo("a/../../escaped.jpg"), photo(0), "member's name leaves the archive"),
    "absolute": (tarfile.TarInfo("/escaped.jpg"), photo(0), "member's name leaves the archive"),
    "symbolic link": (link(tarfile.SYMTYPE, "/etc/passwd"), b"", "member is a link"),
    "hard link": (link(tarfile.LNKTYPE, "../0001.jpg"), b"", "member is a link"),
    "device": (link(tarfile.CHRTYPE, ""), b"", "member is not a file"),
    "pickle": (tarfile.TarInfo("0010.pkl"), pickle.dumps(Bomb()), "member is a pickle"),
    "weights": (tarfile.TarInfo("0010.embedding.PTH"), pickle.dumps(Bomb()), "member is a pickle"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_tars_that_could_do_harm_are_refused(tmp_path: Path, name: str) -> None:
    member, data, reason = MEMBERS[name]
    source = tar_with(tmp_path / "raw", member, data)
    before = {file for file in tmp_path.rglob("*") if "out" not in file.parts}
    manifest = ingest_folder(source, tmp_path / "out")
    assert rows(tmp_path / "out/quarantine.parquet") == [
        {"file": f"99.tar:{member.name}", "reason": reason, "bytes": len(data)}
    ]
    assert (manifest["num_samples"], manifest["num_images"]) == (13, 12)
    assert {file for file in tmp_path.rglob("*") if "out" not in file.relative_to(tmp_path).parts} == before
    assert not Path("/tmp/unpickled").exists()


def test_a_member_above_the_limit_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("0010.jpg")
    source = tar_with(tmp_path / "raw", member, photo(0) + bytes(60_000_000))
    manifest = ingest_folder(source, tmp_path / "out")
    assert manifest["reasons"] == {"more than 50000000 bytes": 1, "second image of a sample": 1}
    sizes = {row["reason"]: row["bytes"] for row in rows(tmp_path / "out/quarantine.parquet")}
    assert sizes["more than 50000000 bytes"] == 60_000_000 + len(photo(0))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_damaged_tar_gives_what_is_before_the_damage(tmp_path: Path, mode: str, share: float) -> None:
    members = {f"{seed}.{kind}": photo(seed) if kind == "jpg" else b"x" for seed in range(6) for kind in ("jpg", "txt")}
    file = write_tar(tmp_path / f"tars/x{'.tar.gz' if mode == 'w:gz' else '.tar'}", members, mode)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    if share == 0.0:
        with pytest.raises(ValueError, match=r"1 of 1 samples of .* are bad .* damaged tar file \(1\)"):
            ingest_folder(file, tmp_path / "out")
    else:
        manifest = ingest_folder(file, tmp_path / "out")
        assert manifest["num_images"] > 0
        assert manifest["reasons"]["damaged tar file"] == 1


def test_damage_within_a_parquet_file_costs_the_rows_after_it(tmp_path: Path) -> None:
    source = tmp_path / "raw"
    write_parquet(source, items(600), group=300)
    content = bytearray((source / "data.parquet").read_bytes())
    content[len(content) // 4 : len(content) // 4 + 50_000] = bytes(50_000)
    (source / "data.parquet").write_bytes(content)
    manifest = ingest_folder(source, tmp_path / "out", max_bad_share=1.0)
    assert 300 <= manifest["num_images"] < 600
    assert manifest["num_quarantined"] >= 1


def test_the_same_image_with_other_captions_keeps_them_all(tmp_path: Path) -> None:
    found = items(3)
    found["copy.jpg"] = (found["0001.jpg"][0], ["photo 1", "seen once more"])
    manifest = ingest_folder(write_sidecars(tmp_path / "raw", found), tmp_path / "out")
    assert (manifest["num_images"], manifest["num_merged"], manifest["num_quarantined"]) == (3, 1, 0)
    (united,) = (pair for pair in iter_pairs(tmp_path / "out") if pair.image == found["0001.jpg"][0])
    assert united.captions == ("photo 1", "the 1th picture", "seen once more")


def test_a_caption_that_is_another_image_s_as_well_stays_with_both(tmp_path: Path) -> None:
    found = items(3)
    found["0002.jpg"] = (found["0002.jpg"][0], ["photo 1"])
    ingest_folder(write_sidecars(tmp_path / "raw", found), tmp_path / "out")
    assert [pair.captions[0] for pair in iter_pairs(tmp_path / "out")] == ["photo 0", "photo 1", "photo 1"]


@pytest.mark.parametrize(("num_bad", "fails"), [(9, False), (10, True)])
def test_the_share_of_bad_members_stops_a_run(tmp_path: Path, num_bad: int, fails: bool) -> None:
    members = {f"{seed}.jpg": photo(seed) for seed in range(10)} | {f"{seed}.txt": b"x" for seed in range(10)}
    ordered = {name: members[name] for name in sorted(members)}
    write_tar(tmp_path / "raw/x.tar", ordered | {f"../{number}.jpg": b"bad" for number in range(num_bad)})
    if fails:
        with pytest.raises(ValueError, match=r"10 of 20 samples .* member's name leaves the archive \(10\)"):
            ingest_folder(tmp_path / "raw", tmp_path / "out")
    else:
        assert ingest_folder(tmp_path / "raw", tmp_path / "out")["num_images"] == 10
    assert len(rows(tmp_path / "out/quarantine.parquet")) == num_bad


def test_all_of_it_at_once_in_a_metadata_file(tmp_path: Path) -> None:
    source = write_sidecars(tmp_path / "raw", items(60))
    lines = [b"{", b"[1]", b"\xff", json.dumps({"file_name": "/etc/passwd", "text": "x"}).encode()]
    faults = [("gone.jpg", "x"), ("0000.jpg", "")]
    lines += [json.dumps({"file_name": name, "text": text}).encode() for name, text in faults]
    (source / "metadata.jsonl").write_bytes(b"\n".join(lines))
    manifest = ingest_folder(source, tmp_path / "out")
    assert manifest["reasons"] == {
        "empty caption": 1,
        "file not found": 1,
        "metadata line is not JSON in UTF-8": 2,
        "metadata line without file_name": 1,
        "path leaves the folder": 1,
    }
    assert manifest["num_samples"] == 6 + 59
    assert manifest["num_images"] == 59
