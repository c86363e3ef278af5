"""``python -m odediff``, and the console script."""

import os
import sys

from odediff import app


def main() -> None:
    """Run the application where the modules of this folder are found, a solver of the user's own, as `-m` has it."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    app.main()


if __name__ == "__main__":
    main()
