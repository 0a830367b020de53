"""The errors that tfprune raises on purpose.

A :class:`UsageError` is the user's to mend: its message is one line that names what was received, what
is valid and what to do, and the command line turns it into exit status 2 without a traceback. Any other
exception is a bug of ours or of the machine, and may be loud.
"""


class TfpruneError(Exception):
    """Base of every error that tfprune raises on purpose."""


class UsageError(TfpruneError, ValueError):
    """A wrong argument, flag, file or combination."""


class DataError(UsageError):
    """A data set that is missing, truncated or of another format than its name says."""


class PlanError(UsageError):
    """A plan that cannot be made, or that does not belong to the model it is applied to."""


class VerificationError(TfpruneError):
    """The pruned network does not compute what the masked original computes."""


class NothingProvedError(VerificationError):
    """The outputs depend neither on inputs nor on what is removed, so that comparing them proves nothing."""


class ExportError(TfpruneError):
    """An exported network, read back, does not compute what the network in memory computes."""


class DivergedError(TfpruneError):
    """The training loss is no longer a finite number, or has exploded."""


class RunsFailedError(TfpruneError):
    """Runs of a study failed; the others went on."""
