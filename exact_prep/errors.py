"""The errors exact-prep raises on purpose. Nothing else lives here.

    ExactPrepError
    ├── UsageError (ValueError)        an option or combination that cannot be meant
    ├── SourceError (ValueError)       a document, line, row or file of the corpus that cannot be used
    ├── TokenizerError (ValueError)    a tokenizer that cannot be loaded, or whose ids cannot be trusted
    ├── WeightsError (ValueError)      an exposure or option from which no weights follow
    ├── DatasetError (ValueError)      a directory that is not (or no longer) what its manifest says
    ├── StorageError (OSError)         a path that cannot be read, written, locked or published
    ├── LedgerError (RuntimeError)     tokens in and tokens out do not add up: a bug, never the user's fault
    ├── WorkerError (RuntimeError)     a worker process died
    └── Interrupted (RuntimeError)     the run was asked to stop (Ctrl-C, SIGTERM); it can be continued

Every message says what, where (path, line or row, field) and the remedy, in one or two lines.
"""


class ExactPrepError(Exception):
    """Root of everything exact-prep raises on purpose."""


class UsageError(ExactPrepError, ValueError):
    """An option, or a combination of options, that cannot be meant."""


class SourceError(ExactPrepError, ValueError):
    """A document, line, row or file of the corpus that cannot be used."""


class TokenizerError(ExactPrepError, ValueError):
    """A tokenizer that cannot be loaded, or whose ids cannot be trusted."""


class WeightsError(ExactPrepError, ValueError):
    """An exposure or option from which no weights follow."""


class DatasetError(ExactPrepError, ValueError):
    """A directory that is not, or no longer, what its manifest says."""


class StorageError(ExactPrepError, OSError):
    """A path that cannot be read, written, locked or published."""


class LedgerError(ExactPrepError, RuntimeError):
    """Tokens in and tokens out do not add up."""


class WorkerError(ExactPrepError, RuntimeError):
    """A worker process died."""


class Interrupted(ExactPrepError, RuntimeError):
    """The run was asked to stop; what it finished is kept."""
