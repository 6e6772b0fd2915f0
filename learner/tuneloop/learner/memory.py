"""How much memory was needed. Standard library only, where torch is not there already."""

import resource
import sys


def peak_memory_bytes() -> int:
    """Most memory held so far: of the GPU where one was used, else resident in this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
