"""What all sections of the configuration are made of."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def number(value: Any) -> Any:
    """A whole number that is written as 5e9, 10M, 1.5B or 22_000; anything else as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d[\d_,]*(?:\.\d+)?(?:e\+?\d+)?)\s*([kmbt]?)\s*", value.lower())
    if not match:
        return value
    exact = Decimal(match[1].replace("_", "").replace(",", "")) * SUFFIXES[match[2]]
    return int(exact) if exact == int(exact) else value


Tokens = Annotated[PositiveInt, BeforeValidator(number)]
"""A number of tokens."""


class Model(BaseModel):
    """Base of every section: immutable, an unknown key is an error, and so is a number that is infinite or none. A
    field's docstring is its description, of which docs/configuration.md is made (`cli/config_page.py`)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants", use_attribute_docstrings=True
    )
