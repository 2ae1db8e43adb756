"""Memory of this process: freed memory is returned, large tensors are aligned for huge pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HELD = """
import ctypes
from stableanimator_cli.host_memory import trim

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = []
for _ in range(1000):
    blocks.append(libc.malloc(65536))
    ctypes.memset(blocks[-1], 1, 65536)
last = libc.malloc(65536)  # memory below a block that is in use is not returned by itself
for block in blocks:
    libc.free(block)
held = resident()
trim()
print(held - resident())
"""

_PAGES = """
import stableanimator_cli.engine
import torch
print(max(torch.empty(4 << 20, dtype=torch.uint8).data_ptr() % 4096 for _ in range(3)))
"""

_FAULTS = """
import resource
import torch
from stableanimator_cli.engine.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40 << 20)  # 160 MiB, which glibc would map and return each time
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(sorted(faults() for _ in range(41))[20])
"""


def _printed(program: str) -> int:
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_returned() -> None:
    assert _printed(_HELD) > 50_000  # kB of 64,000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's huge pages")
def test_large_tensors_begin_at_a_page() -> None:
    assert _printed(_PAGES) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_training_reuses_the_memory_of_large_tensors() -> None:
    """The median: in one process of six, the first few allocations find a small one in the way and take new pages."""
    assert _printed(_FAULTS) < 20
