"""The records that evaluation leaves: numbers with names, written as JSON and read back."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Plain data that `model_dump(mode="json")` writes and `model_validate` reads; what it does not know it ignores."""

    model_config = ConfigDict(frozen=True)
