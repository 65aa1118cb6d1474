"""Paths and URIs of a configuration carry no credential: configurations are stored, logged and sent to MLflow."""

import re
from typing import Annotated
from urllib.parse import parse_qsl

from pydantic import AfterValidator

SECRETS = re.compile(r"(?i)secret|token|password|passwd|pwd|signature|^sig$|credential|(access|api)_?key")
USER_AND_PASSWORD = re.compile(r"[^/@:?#]*:(?!\d+([/?#]|$))[^@]*@")
"""At the head of a URI's rest, whatever characters the password has; `host:port/` is none."""


def without_secret(value: str) -> str:
    """Refuse a URI with a password, a web address with a user, or a credential in the query.

    Raises ValueError."""
    if "://" in value and _carries_secret(value):
        raise ValueError("the URI carries a credential; leave it out and put it in the environment")
    return value


def _carries_secret(uri: str) -> bool:
    """Also in a URI, or its host alone, that is itself an option of the query (`endpoint_override`)."""
    scheme, separator, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    place, *query = re.split("[?#]", rest)
    user = separator and scheme.lower() in ("http", "https") and "@" in place.partition("/")[0]
    options = parse_qsl("&".join(query))
    return bool(
        user
        or USER_AND_PASSWORD.match(rest)
        or any(SECRETS.search(key) or _carries_secret(option) for key, option in options)
    )


Place = Annotated[str, AfterValidator(without_secret)]
"""A path or URI without a credential in it."""
