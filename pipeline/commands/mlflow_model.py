"""The MLflow model: raw columns in, label and probabilities out. MLflow runs this file to load a registered version."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel

from pipeline.core.errors import UserError
from pipeline.networks.bundle import Bundle, load_bundle


class TableModel(PythonModel):
    """A bundle behind MLflow's interface."""

    bundle: Bundle

    def load_context(self, context: Any) -> None:
        self.bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        try:
            return self.bundle.predict(model_input)
        except UserError as error:  # a server answers with status 400 and this message
            raise MlflowException(str(error), BAD_REQUEST) from None


mlflow.models.set_model(TableModel())
