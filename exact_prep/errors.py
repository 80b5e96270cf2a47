"""The errors exact-prep raises on purpose. Nothing else lives here.

    ExactPrepError
    ├── UsageError (ValueError)        an invalid option, or options that do not go together
    ├── SourceError (ValueError)       a document, line, row or file of the corpus is unusable
    ├── TokenizerError (ValueError)    a tokenizer cannot be loaded, or its ids cannot be trusted
    ├── WeightsError (ValueError)      weights cannot be computed from an exposure or from the options
    ├── DatasetError (ValueError)      a directory is not a dataset, or does not match its manifest
    ├── StorageError (OSError)         a path cannot be read, written, locked or published
    ├── LedgerError (RuntimeError)     tokens in and tokens out do not add up: a bug, never the user's fault
    ├── WorkerError (RuntimeError)     a worker process died
    ├── TasksMissing (RuntimeError)    members of a job array have not finished all tasks
    └── Interrupted (RuntimeError)     the run was asked to stop (Ctrl-C, SIGTERM); it can be continued

Every message says what is wrong, where (path, line or row, field), and how to fix it, in one or two lines.
"""


class ExactPrepError(Exception):
    """Root of everything exact-prep raises on purpose."""


class UsageError(ExactPrepError, ValueError):
    """An option is invalid, or options do not go together."""


class SourceError(ExactPrepError, ValueError):
    """A document, line, row or file of the corpus is unusable."""


class TokenizerError(ExactPrepError, ValueError):
    """A tokenizer cannot be loaded, or its ids cannot be trusted."""


class WeightsError(ExactPrepError, ValueError):
    """Weights cannot be computed from an exposure or from the options."""


class DatasetError(ExactPrepError, ValueError):
    """A directory is not a dataset, or does not match its manifest."""


class StorageError(ExactPrepError, OSError):
    """A path cannot be read, written, locked or published."""


class LedgerError(ExactPrepError, RuntimeError):
    """Tokens in and tokens out do not add up: a bug in exact-prep."""


class WorkerError(ExactPrepError, RuntimeError):
    """A worker process died."""


class TasksMissing(ExactPrepError, RuntimeError):
    """Members of a job array have not finished all tasks; start those again that the message names."""


class Interrupted(ExactPrepError, RuntimeError):
    """The run was asked to stop (Ctrl-C, SIGTERM); finished work is kept and the run can be continued."""
