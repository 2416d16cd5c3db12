"""Two processes under DistributedDataParallel compute the gradient of the joined batch."""

import datetime
import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tests.networks.small import IUNET, build_shaken, compute_gradients, draw_image, measure_logits


def _work(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=600),
    )
    network = build_shaken(IUNET)
    parallel = DistributedDataParallel(network)
    image = draw_image(2, 1, 5, 6, 7)
    measure_logits(parallel, image[rank : rank + 1]).backward()
    if rank == 0:
        gradients = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        Path(out).write_bytes(gradients.numpy().tobytes())
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_compute_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    out = tmp_path / "gradients"
    multiprocessing.spawn(_work, args=(str(tmp_path / "store"), str(out)), nprocs=2)
    found = torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.float64)
    expected = compute_gradients(build_shaken(IUNET), draw_image(2, 1, 5, 6, 7))
    torch.testing.assert_close(
        found, torch.cat([g.flatten() for g in expected.values()]), rtol=1e-9, atol=1e-13
    )
