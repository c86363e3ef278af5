import gc
import os

import pytest
import torch

# One worker of pytest-xdist runs on each core: more threads than that, in it or in the processes that its tests start,
# would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Before its first compilation, torch.compile compiles programs that try out the processor's vector instructions: twenty
# seconds that show nothing about this project.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# The libraries and the collected tests, half a million objects, stay until the end: the collector, which would go
# through them again and again, starts with the first test and leaves them out. It then runs less often than by default,
# which takes a twentieth off the time: tests make few cycles.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.freeze()
    gc.set_threshold(100_000)
    gc.enable()
