"""MLflow's own database, where no server is between: made whole, and known to answer."""

from pathlib import Path

import sqlalchemy
from mlflow.db import upgrade

from ospo.files import atomic_file

SQLITE = "sqlite:///"


def prepare_database(uri: str) -> None:
    """Make the sqlite file of ``uri`` where it is missing; try once whether another database
    answers.

    A new file gets all its tables beside its place and is then put there: a process that is killed
    meanwhile leaves no half-made database, which MLflow would refuse ever after. MLflow itself
    tries an address where nothing answers for minutes, with a warning each time. Raises the
    driver's error.
    """
    if not uri.startswith(SQLITE):
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        engine.connect().close()
        return
    file = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if file.exists() or file.name in ("", ":memory:"):
        return
    with atomic_file(file, keep_existing=True) as temporary:
        upgrade.callback(f"{SQLITE}{temporary}")  # type: ignore[misc]  # click types it optional
