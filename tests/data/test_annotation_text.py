"""Compressed annotation files and shards by a pattern: rows, lines and messages as of plain files."""

import gzip
import json
import os
import time

import pytest

from internvl.data import annotation_text
from internvl.data.annotation import AnnotationFile
from internvl.data.meta import read_meta
from internvl.errors import UserError

ROW = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]}
TEXT = "".join(json.dumps({"id": number, **ROW}) + "\n\n" for number in range(5)).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "annotations"


def test_rows_of_a_compressed_file_are_those_of_the_plain_one(tmp_path, cache):
    (tmp_path / "rows.jsonl").write_bytes(TEXT)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT))
    plain, packed = (AnnotationFile(tmp_path / name) for name in ("rows.jsonl", "rows.jsonl.gz"))
    assert len(packed) == len(plain) == 5 and packed.sha256() == plain.sha256()
    assert [packed.line(row) for row in range(5)] == [plain.line(row) for row in range(5)]
    assert packed.where(2) == f"{tmp_path}/rows.jsonl.gz:5"
    (kept,) = cache.iterdir()
    before = kept.stat().st_ino
    assert len(AnnotationFile(tmp_path / "rows.jsonl.gz")) == 5 and kept.stat().st_ino == before
    # Another content has another name, whatever the file's time says.
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT[: len(TEXT) // 5]))
    assert len(AnnotationFile(tmp_path / "rows.jsonl.gz")) == 1


def test_an_empty_compressed_file_has_no_rows(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b""))
    assert len(AnnotationFile(tmp_path / "rows.jsonl.gz")) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "tail"])
def test_a_damaged_file_is_named_and_nothing_is_kept(tmp_path, cache, damage):
    packed = bytearray(gzip.compress(TEXT))
    if damage == "cut":
        packed = packed[:-20]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    else:
        packed[-6] ^= 0xFF
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"rows.jsonl.gz: is a damaged gzip file .*compress it again"):
        AnnotationFile(tmp_path / "rows.jsonl.gz")
    assert not list(cache.iterdir())


def test_a_file_that_grows_without_end_is_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(annotation_text, "MAX_TEXT_BYTES", 1000)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b" " * 100_000))
    with pytest.raises(UserError, match="more than 1,000 bytes of text"):
        AnnotationFile(tmp_path / "rows.jsonl.gz")
    assert not list(cache.iterdir())


def test_where_nothing_can_be_kept_the_text_is_read_into_memory(tmp_path, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("not a folder")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT))
    assert len(AnnotationFile(tmp_path / "rows.jsonl.gz")) == 5
    assert "takes memory instead" in caplog.text


def test_texts_that_nobody_uses_any_more_are_removed(tmp_path, cache):
    cache.mkdir(parents=True)
    for name, age in (("old.jsonl", 40), ("used.jsonl", 2)):
        (cache / name).write_bytes(TEXT)
        os.utime(cache / name, (time.time() - age * 86400,) * 2)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT))
    AnnotationFile(tmp_path / "rows.jsonl.gz")
    assert not (cache / "old.jsonl").exists() and (cache / "used.jsonl").exists()


def meta(tmp_path, annotation):
    (tmp_path / "meta.json").write_text(json.dumps({"set": {"root": str(tmp_path), "annotation": annotation}}))
    return read_meta(tmp_path / "meta.json")


def test_a_pattern_is_all_shards_in_order(tmp_path):
    for number in (2, 0, 1):
        (tmp_path / f"part-{number}.jsonl").write_bytes(TEXT)
    (tmp_path / "odd[1].jsonl").write_bytes(TEXT)
    names = [path.name for path in meta(tmp_path, str(tmp_path / "part-*.jsonl"))[0].annotations]
    assert names == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"]
    mixed = meta(tmp_path, [str(tmp_path / "odd[1].jsonl"), str(tmp_path / "part-[01].jsonl")])[0].annotations
    assert [path.name for path in mixed] == ["odd[1].jsonl", "part-0.jsonl", "part-1.jsonl"]


def test_a_pattern_that_fits_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"meta.json:set.annotation: no file fits .*none-\*.jsonl"):
        meta(tmp_path, str(tmp_path / "none-*.jsonl"))
