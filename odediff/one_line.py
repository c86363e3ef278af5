"""An exception in one line, as error messages quote it."""


def one_line(error: Exception) -> str:
    """The exception's class and the first line of its message."""
    message = str(error)
    return f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}"
