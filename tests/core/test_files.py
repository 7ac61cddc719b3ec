"""Files are written whole or not at all, and the same value gives the same bytes."""

import hashlib
import json
import os
import stat

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import files


def test_replacing_writes_a_file_with_its_folders(tmp_path):
    path = tmp_path / "a/b/c.txt"
    files.write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["c.txt"]


def test_replacing_keeps_the_name_so_that_writers_know_the_format(tmp_path):
    with files.replacing(tmp_path / "table.parquet") as temporary:
        assert temporary.name == "table.parquet"
        assert temporary.parent.parent == tmp_path  # one disk, so that the last step is a rename
        temporary.write_bytes(b"x")


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failed_write_keeps_the_old_file(tmp_path, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def fail():
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (path.read_bytes() if path.exists() else None) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if before is None else ["file"])


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path, mask):
    old = os.umask(mask)
    try:
        with files.replacing(tmp_path / "file") as temporary:
            temporary.touch(mode=0o600)
        assert os.umask(mask) == mask
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def test_sha256_and_copy_agree_with_the_bytes(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    files.copy(tmp_path / "a", tmp_path / "b/c")
    assert (tmp_path / "b/c").read_bytes() == content
    assert files.sha256(tmp_path / "b/c") == hashlib.sha256(content).hexdigest()


def test_csv_reads_back_with_unix_line_ends(tmp_path):
    table = pd.DataFrame({"a, b": [1, 2], "ü": ["x\ny", 'he said "no"']})
    files.write_csv(tmp_path / "t.csv", table)
    assert b"\r" not in (tmp_path / "t.csv").read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
@settings(max_examples=50, database=None, deadline=None)
def test_json_text_reads_back_as_the_value(value):
    text = files.dump_json(value)
    assert text.endswith("\n")
    assert json.loads(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_json_refuses_nan_and_infinity(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []
