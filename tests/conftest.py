import os

import torch

# One worker of pytest-xdist runs on each core: more threads than that would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
