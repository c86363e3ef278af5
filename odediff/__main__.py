"""``python -m odediff``, and the console script."""

import os
import sys

from odediff import app


def main() -> None:
    """Run the application with the current folder importable, as under `python -m`, for a solver of the user's own."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    app.main()


if __name__ == "__main__":
    main()
