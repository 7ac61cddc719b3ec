"""Baselines without a network: a constant prediction, and gradient-boosted trees."""

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.tables.preprocessing import category_codes, numeric_features
from pipeline.tables.schema import Schema, Target

MAX_TREE_CATEGORIES = 255  # scikit-learn's limit; the codes of a column with more are used as numbers


def constant_outputs(y_train: Tensor, n: int, target: Target) -> Tensor:
    """Predict the class shares, or the mean, of the training rows for each of `n` rows."""
    if target.task == "regression":
        return y_train.mean().expand(n, 1)
    shares = torch.bincount(y_train, minlength=len(target.classes)) / len(y_train)
    return _outputs(shares.double().expand(n, -1).numpy(), target)


class Trees:
    """scikit-learn's HistGradientBoosting with its defaults; the last digits of its outputs depend on `threads`."""

    def __init__(
        self, table: pd.DataFrame, y: np.ndarray, schema: Schema, target: Target, *, seed: int, threads: int
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        features = self._features(table, schema)
        n_num = features.shape[1] - len(schema.cardinalities)
        small = [size <= MAX_TREE_CATEGORIES for size in schema.cardinalities]
        options = {"categorical_features": np.array([False] * n_num + small), "random_state": seed}
        self.schema, self.target = schema, target
        if target.task == "regression":
            self.trees = HistGradientBoostingRegressor(**options)
        else:
            # Early stopping needs a stratified split, impossible for a class of one row.
            stopping = "auto" if np.bincount(y).min() > 1 else False
            self.trees = HistGradientBoostingClassifier(**options, early_stopping=stopping)
        with threadpool_limits(threads):
            self.trees.fit(features, y)

    @staticmethod
    def _features(table: pd.DataFrame, schema: Schema) -> np.ndarray:
        return np.hstack([numeric_features(table, schema), table[schema.flags], category_codes(table, schema)])

    def outputs(self, table: pd.DataFrame) -> Tensor:
        """Predict a checked table, in the form of a network's outputs."""
        features = self._features(table, self.schema)
        if self.target.task == "regression":
            return torch.from_numpy(self.trees.predict(features)).float().unsqueeze(1)
        return _outputs(self.trees.predict_proba(features), self.target)


def _outputs(probabilities: np.ndarray, target: Target) -> Tensor:
    """Return the logits of `probabilities` [n, classes]."""
    logs = torch.from_numpy(np.log(np.clip(probabilities, 1e-12, 1.0))).float()
    return logs if target.task == "multiclass" else logs[:, 1:] - logs[:, :1]
