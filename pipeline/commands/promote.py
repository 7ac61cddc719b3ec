"""`python -m pipeline promote`."""

import time

from pipeline.core.errors import UserError


def promote(version: int) -> None:
    """Give a registered version the alias `champion`; raises `UserError` if there is no such version."""
    from mlflow.exceptions import MlflowException

    from pipeline.core import config
    from pipeline.tracking import store
    from pipeline.tracking.delivery import SINCE

    settings = config.load()
    name, client = settings.register_.name, store.connect(store.tracking_uri(settings.tracking))
    try:
        before = client.get_registered_model(name).aliases.get("champion")
        client.set_model_version_tag(name, str(version), SINCE, str(int(time.time() * 1000)))
        client.set_registered_model_alias(name, "champion", str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UserError(f"models:/{name} has no version {version}") from None
        raise UserError(store.no_answer(settings.tracking, error)) from None
    print(f"models:/{name}@champion is version {version}" + (f", before {before}" if before else ""))
