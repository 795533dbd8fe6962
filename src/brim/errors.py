"""What a user can get wrong, as exceptions whose text says what, where and how to mend it.

The command line prints the text on one line of standard error and exits with code 2.
Each kind is also a standard exception, so library users need not import it to catch it.
"""


class BrimError(Exception):
    """A mistake that the user can mend; everything else is a bug of ours."""


class ConfigError(BrimError, ValueError):
    """A recipe, a setting or an override that cannot be used; the text names the file and line."""


class DataError(BrimError, ValueError):
    """A data set or a row that cannot be used; the text names `file:line`."""


class ModelError(BrimError, ValueError):
    """A model or tokenizer that cannot take the role asked of it."""


class RunError(BrimError, RuntimeError):
    """A run directory or checkpoint that is missing, foreign, damaged or not writable."""


class AwayError(RunError):
    """A server that gives no answer any more; the same command resumes once it does."""


class NonFiniteError(BrimError, ArithmeticError):
    """Losses, returns or gradients stayed non-finite; the last good checkpoint is intact."""


class CallbackError(BrimError, RuntimeError):
    """A callback of the user's failed; the training's last step is saved."""


class MonitorError(BrimError, RuntimeError):
    """A monitor had the training stop (`trainer.monitors`); its last step is saved."""


def first_line(error: Exception) -> str:
    """The first line of what another library's error says; its kind where that is too little."""
    if isinstance(error, KeyError):  # which says the key alone
        return repr(error)
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
