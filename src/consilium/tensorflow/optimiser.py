"""Updates of parameters in TensorFlow, number for number those of torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import tensorflow as tf

from consilium.networks.parameters import choose_group
from consilium.tensorflow.blocks import Tensor


def clip_by_norm(gradients: Mapping[str, Tensor], limit: float) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients whose norm over all together is at most ``limit``, and the norm before.

    Source: ``torch.nn.utils.clip_grad_norm_``, whose 1e-6 in the denominator is kept.
    """
    norms = [tf.norm(value) for value in gradients.values()]
    norm = tf.norm(tf.stack(norms))
    share = tf.minimum(tf.cast(limit, norm.dtype) / (norm + tf.constant(1e-6, norm.dtype)), 1.0)
    return {name: value * share for name, value in gradients.items()}, norm


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How the groups of parameters move.

    Args:
        decay: Weight decay of convolution and resampling weights.
        head_factor: Learning rate of the heads as a multiple of the others'.
    """

    decay: float = 0.0
    head_factor: float = 1.0

    def of(self, name: str, dimensions: int) -> tuple[float, float]:
        """Decay, and factor of the rate, of one parameter."""
        group = choose_group(name, dimensions)
        return self.decay if group == "decayed" else 0.0, self.head_factor if group == "heads" else 1.0


class Sgd:
    """Plain gradient descent: ``p -= rate * (g + decay * p)``.

    Source: ``torch.optim.SGD`` without momentum.
    """

    def __init__(self, parameters: Mapping[str, tf.Variable], rates: Rates | None = None) -> None:
        self._parameters, self._rates = dict(parameters), rates or Rates()

    def apply(self, gradients: Mapping[str, Tensor], rate: Tensor) -> None:
        """Move what has a gradient by one step at a learning rate, a scalar float64."""
        for name, gradient in gradients.items():
            parameter = self._parameters[name]
            decay, factor = self._rates.of(name, len(parameter.shape))
            flow = gradient + decay * parameter if decay else gradient
            parameter.assign_sub(tf.cast(rate * factor, parameter.dtype) * flow)


class AdamW(tf.Module):  # type: ignore[misc]
    """Adam with decoupled weight decay.

    Source: Loshchilov, Hutter 2019, "Decoupled weight decay regularization", algorithm 2; in the order of
    ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        parameters: Mapping[str, tf.Variable],
        rates: Rates | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(name="adamw")
        self._parameters, self._rates = dict(parameters), rates or Rates()
        self._betas, self._epsilon = betas, epsilon
        self.taken = {name: tf.Variable(0.0, dtype=tf.float64) for name in self._parameters}
        self.moments = {
            name: (tf.Variable(tf.zeros_like(value)), tf.Variable(tf.zeros_like(value)))
            for name, value in self._parameters.items()
        }

    def apply(self, gradients: Mapping[str, Tensor], rate: Tensor) -> None:
        """Move what has a gradient by one step at a learning rate, a scalar float64."""
        first, second = (tf.constant(beta, tf.float64) for beta in self._betas)
        for name, flow in gradients.items():
            parameter = self._parameters[name]
            decay, factor = self._rates.of(name, len(parameter.shape))
            kind, (mean, square) = parameter.dtype, self.moments[name]
            taken, speed = self.taken[name].assign_add(1.0), rate * factor
            size, root = 1.0 - tf.pow(first, taken), tf.sqrt(1.0 - tf.pow(second, taken))
            if decay:
                parameter.assign(parameter * tf.cast(1.0 - speed * decay, kind))
            mean.assign_add((flow - mean) * tf.constant(1.0 - self._betas[0], kind))
            square.assign(
                square * tf.constant(self._betas[1], kind)
                + flow * flow * tf.constant(1.0 - self._betas[1], kind)
            )
            divisor = tf.sqrt(square) / tf.cast(root, kind) + tf.constant(self._epsilon, kind)
            parameter.assign_sub(tf.cast(speed / size, kind) * mean / divisor)
