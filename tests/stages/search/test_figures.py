import pandas as pd

from pipeline.stages.search import figures
from pipeline.stages.search.study import search
from tests.support.searches import configured, made_up, runner


def test_plots_of_a_search_are_drawn_and_repeat(tmp_path):
    found = search(configured(n_trials=6), runner(diverge={2}))
    for folder in (tmp_path / "one", tmp_path / "two"):
        figures.save_search(folder, found.table(), found.best_so_far(), found.importances, {"train.lr"})
    names = ["history.png", "importance.png", "slice.png"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_plots_of_a_search_without_importances_are_drawn(tmp_path):
    found = search(configured(n_trials=2, space={"model.activation": {"choices": ["relu", "tanh"]}}), made_up)
    assert found.importances == {}
    figures.save_search(tmp_path, found.table(), found.best_so_far(), found.importances, set())
    assert isinstance(found.best_so_far(), pd.Series)
