"""Whether the Hugging Face hub answers, asked before its client is: that one tries again for minutes."""

from align_ray.errors import first_line

PATIENCE = 8.0
"""Seconds in which it must answer."""
ANSWERED: set[str] = set()
"""Addresses that did, in this process."""


def not_answering() -> str:
    """ "" where the hub answers, or is not asked (HF_HUB_OFFLINE); else a clause that says where it is, why not, and
    what to do."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    address = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE or address in ANSWERED:
        return ""
    try:
        get_session().head(address, timeout=PATIENCE)
    except Exception as error:  # each way of not being there has a class of its own
        return (
            f"the hub at {address} does not answer ({first_line(error)}); check the connection, or set "
            "HF_HUB_OFFLINE=1 to use what the cache holds"
        )
    ANSWERED.add(address)
    return ""
