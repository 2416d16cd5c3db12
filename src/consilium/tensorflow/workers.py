"""Several processes, on one machine or several, that train one network in TensorFlow together."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from consilium.errors import ConfigurationError
from consilium.tensorflow.blocks import Tensor
from consilium.training.workers import lost_worker

CLUSTER = "TF_CONFIG"
EXAMPLE = '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}'

Result = TypeVar("Result")


class TensorflowWorkers:
    """The processes of one training, as ``MultiWorkerMirroredStrategy`` connects them; a process per device.

    Every process keeps its own copy of all variables and changes it by the same gradients, so the copies stay
    equal. Make it before anything else of TensorFlow runs.
    """

    def __init__(self) -> None:
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self.rank = int(self._strategy.cluster_resolver.task_id)
        self.count = int(self._strategy.num_replicas_in_sync)
        self._sum = tf.function(self._sum_everywhere, autograph=False)

    @property
    def leads(self) -> bool:
        """Whether this process validates, writes and decides."""
        return self.rank == 0

    def run(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Run a function at every worker so that `join` and `add` work in it."""
        return self._strategy.run(work, args=arguments)

    def join(self, own: Tensor) -> Tensor:
        """The sum over all workers; the gradient flows to this worker's part only."""
        context = tf.distribute.get_replica_context()
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(own))
        return tf.stop_gradient(total) + (own - tf.stop_gradient(own))

    def add(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each array summed over all workers."""
        context = tf.distribute.get_replica_context()
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, list(parts.values()))
        return dict(zip(parts, sums, strict=True))

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first worker's values, at all of them."""
        own = tf.constant([float(value) if self.leads else 0.0 for value in values], tf.float64)
        return [float(value) for value in self.together(lambda: self._sum(own)).numpy()]

    def wait(self) -> None:
        """Until every worker is here."""
        self.agree([0.0])

    def together(self, work: Callable[[], Result]) -> Result:
        """Do something that needs all workers.

        Raises:
            RunError: One of them is gone.
        """
        try:
            return work()
        except tf.errors.OpError as error:
            raise lost_worker(self, error) from error

    def _sum_everywhere(self, own: Tensor) -> Tensor:
        return self.run(self.join, (own,))


def join_tensorflow_workers() -> TensorflowWorkers | None:
    """This process among those that ``TF_CONFIG`` names; None where it names none.

    Raises:
        ConfigurationError: ``TF_CONFIG`` cannot be read.
    """
    text = os.environ.get(CLUSTER, "")
    if not text:
        return None
    try:
        workers = json.loads(text)["cluster"]["worker"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"workers: {CLUSTER} must name the cluster's workers; found {text[:80]!r}. Example: {EXAMPLE}"
        ) from error
    return TensorflowWorkers() if len(workers) > 1 else None
