import pandas as pd
import pytest

from pipeline.core.errors import UserError
from pipeline.tables import raw
from tests.support.sources import TABLE, same


def test_raw_table_of_mixed_types_is_saved_as_text(tmp_path):
    table = pd.DataFrame({"n": [1, 2, 3], "mixed": pd.Series([1, "a", 2.5], dtype=object), "big": [10**30, None, 1]})
    raw.save_raw(table, tmp_path / "raw/table.parquet")
    stored = pd.read_parquet(tmp_path / "raw/table.parquet")
    assert stored["n"].tolist() == [1, 2, 3]
    assert stored["mixed"].tolist() == ["1", "a", "2.5"]
    assert stored["big"].isna().tolist() == [False, True, False]


def test_raw_table_reads_back_and_a_transfer_table_is_optional(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dvc repro"):
        raw.load_raw()
    raw.save_raw(TABLE, raw.RAW_TABLE)
    assert isinstance(raw.load_raw()["word"].dtype, pd.CategoricalDtype)
    same(raw.load_raw().astype({"word": "str"}))
    same(raw.load_raw("transfer").astype({"word": "str"}))
    raw.save_raw(TABLE.head(1), raw.RAW_TRANSFER)
    assert len(raw.load_raw("transfer")) == 1
    same(raw.load_raw("source").astype({"word": "str"}))
