"""An exception in one line, as messages quote it."""


def one_line(error: Exception) -> str:
    """Its class, and the first line of what it says."""
    said = str(error)
    return f"{type(error).__name__}: {said.splitlines()[0] if said else 'no message'}"
