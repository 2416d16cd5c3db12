"""What the machine offers: device, fast bfloat16, memory."""

import platform
from pathlib import Path

import psutil
import torch

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CGROUP_USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def choose_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolution is faster than float32 here (on a CPU: AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or platform.machine() not in {"x86_64", "AMD64"}:
        return False
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def available_memory_bytes(device: torch.device) -> int:
    """Memory that can still be taken: on the GPU, or in this process's share of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    limit, use = _first_number(CGROUP_LIMITS), _first_number(CGROUP_USES)
    if limit is not None and use is not None:
        available = min(available, max(0, limit - use))
    return available


def _first_number(paths: tuple[str, ...]) -> int | None:
    for name in paths:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None
