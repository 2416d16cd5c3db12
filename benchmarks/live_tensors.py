"""Exact peak of live tensors: what torch's CPU allocator holds at most while something runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_live_bytes(work: Callable[[], Any]) -> int:
    """Highest sum of bytes that torch's CPU allocator handed out and did not get back during ``work()``.

    Counted: every allocation through torch's allocator since the start of ``work()``: images, activations,
    gradients and the temporary arrays inside operators. Not counted: what lived before (parameters), and the
    buffers that oneDNN takes for itself, which only resident memory shows.
    """
    with profile(profile_memory=True, use_kineto=True) as recorded:
        work()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in recorded.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    ]
    live = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        live += change
        peak = max(peak, live)
    return peak
