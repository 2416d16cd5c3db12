"""Every error that consilium raises on purpose.

::

    ConsiliumError
    ├── ConfigurationError        a setting or argument that cannot be (exit code 2)
    ├── DataError                 what was read cannot be used (exit code 1)
    │   ├── GeometryError         a grid, affine or contour that is not what it must be
    │   ├── RefusedInput          an outside file or series an importer turns down: reason and remedy
    │   └── DatasetError          a dataset folder that is damaged or of another version
    ├── RunError                  training, contouring or evaluation could not go on (exit code 1)
    │   ├── MemoryPlanError       a volume that does not fit in the memory at hand
    │   └── CheckpointError       a model or checkpoint whose digest or version does not fit
    └── FederationError           the federation could not go on (exit code 1)
        └── UpdateRefused         one update turned down by name; the round goes on

Message form: *where: what must hold; what was found. What to do.* With values and units, never with a
patient's name, id, date or free text: a case is its ``case_id``, a series the last four digits of its UID.
"""


class ConsiliumError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a bug."""


class ConfigurationError(ConsiliumError):
    """A setting or argument that cannot be; the message names the field, the bound and the value."""


class DataError(ConsiliumError):
    """What was read cannot be used."""


class GeometryError(DataError):
    """A grid, affine or contour that is not what it must be."""


class RefusedInput(DataError):
    """An outside file or series that an importer turns down.

    Args:
        where: Which input, without identifiers, e.g. ``"series …7213"``.
        reason: What must hold and what was found, with values and units.
        remedy: What the person can do about it.
        code: Kind of fault, for lists; ``"refused"`` where it has no name of its own.
    """

    def __init__(self, where: str, reason: str, remedy: str, *, code: str = "refused") -> None:
        super().__init__(f"{where}: {reason} {remedy}")
        self.code = code
        self.where = where
        self.reason = reason
        self.remedy = remedy


class DatasetError(DataError):
    """A dataset folder that is damaged, incomplete or of another version."""


class RunError(ConsiliumError):
    """Training, contouring or evaluation could not go on."""


class MemoryPlanError(RunError):
    """A volume that does not fit in the memory at hand; says how much it needs and what would fit."""


class CheckpointError(RunError):
    """A model or checkpoint whose digest, version or content does not fit."""


class FederationError(ConsiliumError):
    """The federation could not go on."""


class UpdateRefused(FederationError):
    """One site's update turned down; carries the site, the round and the reason; the round goes on."""

    def __init__(self, site: str, round_number: int, reason: str) -> None:
        super().__init__(f"update of site {site} for round {round_number} refused: {reason}")
        self.site = site
        self.round_number = round_number
        self.reason = reason
