"""The base of every section of params.yaml."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of params.yaml. Unknown keys, wrong types, NaN and infinity are errors; values
    never change after loading.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )
