"""Whether the Hugging Face hub answers, asked before its client is: that one tries again for minutes."""

from urllib.parse import urlsplit

from align_ray.errors import first_line

PATIENCE, TRIES = 4.0, 2
"""Seconds in which it must answer, and how often it is asked."""
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
    for _ in range(TRIES):
        try:
            get_session().head(address, timeout=PATIENCE)
        except Exception as error:  # each way of not being there has a class of its own
            reason = first_line(error)
        else:
            ANSWERED.add(address)
            return ""
    host = urlsplit(address).netloc.rpartition("@")[2]  # what stands before it may be a secret
    return (
        f"the hub at {host} does not answer ({reason}); check the connection, or set HF_HUB_OFFLINE=1 to use what the "
        "cache holds"
    )
