"""``python -m odediff``."""

from odediff.app import main

if __name__ == "__main__":
    main()
