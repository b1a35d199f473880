"""Exceptions that simgen raises on purpose.

Their messages say what was expected, what came and what to do about it. The command line prints
them as one line and exits with :attr:`SimgenError.exit_code`; anything else is a bug and keeps its
traceback. What goes wrong with a *single sample* of a batch is never an exception: it is a
status in the result (see :mod:`simgen.validation`).
"""


class SimgenError(Exception):
    """Base of every error that simgen raises on purpose."""

    exit_code: int = 1


class InputError(SimgenError, ValueError):
    """The caller's arguments or data do not fit: shapes, dtypes, elements, ranges."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration is inconsistent or names an unknown key."""


class LoadError(SimgenError):
    """A file cannot be read, or is not what it should be."""

    exit_code = 3


class DeviceError(SimgenError):
    """The device asked for is absent, or too small for even a single molecule."""

    exit_code = 4


class MissingDependencyError(SimgenError, ImportError):
    """An optional package is needed for this feature and is not installed."""

    exit_code = 5


class InterruptedRunError(SimgenError):
    """The user stopped a command; the message says what is left of its work and how to go on."""

    exit_code = 130
