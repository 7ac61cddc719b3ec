from collections.abc import Callable
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from tests.support.chain import run_chain
from tests.support.params import IRIS


def test_the_words_auto_and_preset_are_choices_like_any_other(project: Callable[..., Path]) -> None:
    space = {"train.batch_size": {"choices": ["auto", 32, 64]}, "model.dropout": {"choices": [0.5, "preset"]}}
    project(IRIS | {"search.sampler": "grid", "search.n_trials": 6, "search.space": space})
    run_chain("fetch", "prepare", "search")
    trials = pd.read_csv("models/search/trials.csv")
    assert set(trials["train.batch_size"]) == {"auto", "32", "64"}
    assert set(trials["model.dropout"]) == {"0.5", "preset"}
    best = YAML(typ="safe", pure=True).load(Path("models/search/best_params.yaml"))
    assert best["train"]["batch_size"] in ("auto", 32, 64)
