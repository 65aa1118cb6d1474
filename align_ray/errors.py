"""Errors a user can mend. Each message is one sentence that names the file or field and the remedy."""


class UserError(Exception):
    """Bad input: shown without a traceback; the command line exits with 2."""


class ConfigError(UserError):
    """The configuration is wrong or contradicts itself."""


class CorpusError(UserError):
    """A corpus cannot be read or is too small."""


class ProbeError(UserError):
    """The probe or its tokenizer cannot be loaded."""


class CapacityError(UserError):
    """The cluster cannot hold what the configuration asks for."""


class CapReached(Exception):
    """The run has cost what it may (`cost.max_cost`); what is finished is stored. The command line exits with 3."""
