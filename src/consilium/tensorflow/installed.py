"""Whether TensorFlow is there, and what to do where it is not; loads nothing."""

import importlib.util

from consilium.errors import ConfigurationError

INSTALL = "pip install 'consilium[tensorflow]'"


def is_installed() -> bool:
    """Whether TensorFlow can be imported."""
    return importlib.util.find_spec("tensorflow") is not None


def check_installed(what: str) -> None:
    """Refuse to go on without TensorFlow.

    Args:
        what: That needs it, for the message.

    Raises:
        ConfigurationError: It is missing; says the command that installs it.
    """
    if not is_installed():
        raise ConfigurationError(f"{what}: needs TensorFlow; it is not installed. Install it with: {INSTALL}")
