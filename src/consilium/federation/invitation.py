"""What a hospital receives first: the federation file and its name in it. No secret and no code is in it; the
hospital's own file is written at the hospital.
"""

import tomllib
import zipfile
from pathlib import Path

from consilium.errors import ConfigurationError, DataError
from consilium.federation.durable import write_durably
from consilium.federation.federation_file import read_federation_file, read_site_file
from consilium.federation.settings import NAME, FederationSettings

MAX_BYTES = 2**20
FEDERATION, SITE = "federation.toml", "site.toml"
INVITED = "invitation.toml"
"""Names the invited site, and nothing else."""

SKETCHES = "sketches.json"
"""What the plan was derived from; it goes with the invitation where there is one, so that each may check."""

BUILT_IN = "consilium.hospital.local_update:build"
"""The training of a hospital that names no other: it trains on a dataset of this package."""

SITE_TEMPLATE = """\
# This hospital's own file. Nothing in it leaves this machine, and nothing the coordinator sends changes it.
name = "{name}"
# An installed function that takes this file's path and returns the training.
training = "{training}"
# To agree to federation.toml, write the first 12 or more digits of its digest here: {digest}
approved = ""

[hospital]
# The folder that consilium import made; a relative path is seen from this file.
dataset = "dataset"
# Share of the patients that never train and judge every model.
hold_out = 0.2
"""

FEDERATION_TEMPLATE = """\
# The federation. Everybody has the same file; every hospital approves its digest before it trains anything.
name = "my-federation"
rounds = 20
quorum = 2            # a round may close with so many updates
deadline_s = 3600     # and does at this time
give_up_s = 86400     # below the quorum it waits so long
clipping_norm = 1000
max_share = 0.5       # of all cases, for one site

[strategy]
name = "fedavg"       # or fedprox, fedadam, scaffold, median, trimmed_mean, krum

[training]            # what every hospital does in a round; consilium federation plan adds the plan
steps_per_round = 20
validate_every = 5    # rounds between two scores of the model on each hospital's hold-out
personal_steps = 50   # of the fine-tuning at home after the end

[training.config]
network = "iunet"

[coordinator]
host = "localhost"    # the name hospitals connect to
port = 8702

# With consilium federation plan the counts come from the hospitals' sketches.
[[sites]]
name = "hospital-a"
cases = 40

[[sites]]
name = "hospital-b"
cases = 25
"""


def write_invitation(folder: Path, site: str, out: Path) -> FederationSettings:
    """Write the invitation of one enrolled site.

    Raises:
        ConfigurationError: If the federation file does not enrol it.
    """
    settings, _ = read_federation_file(folder / FEDERATION)
    if settings.get_site(site) is None:
        raise ConfigurationError(f"invitation: {site} is not in {FEDERATION}. Add it under [[sites]] first.")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FEDERATION, (folder / FEDERATION).read_text(encoding="utf-8"))
        archive.writestr(INVITED, f'name = "{site}"\n')
        if (folder / SKETCHES).is_file():
            archive.writestr(SKETCHES, (folder / SKETCHES).read_text(encoding="utf-8"))
    return settings


def accept_invitation(invitation: Path, folder: Path, *, training: str = BUILT_IN) -> str:
    """Unpack an invitation into an empty folder and write the hospital's own file; returns the site's name.

    Args:
        invitation: Its federation file and the name are taken, and nothing else that it says.
        folder: Created when absent.
        training: ``module:function`` of this hospital's own choice.

    Raises:
        DataError: If it holds anything but its small files.
        ConfigurationError: If the folder is in use or the files are wrong.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"enrol: the folder must be empty; {folder.name} is not.")
    contents = _read_invitation(invitation)
    name = _parse_name(contents.pop(INVITED))
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    settings, _ = read_federation_file(folder / FEDERATION)
    text = SITE_TEMPLATE.format(name=name, training=training, digest=settings.digest[:16])
    (folder / SITE).write_text(text, encoding="utf-8")
    site, _, _ = read_site_file(folder / SITE)
    return site.name


def _read_invitation(invitation: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(invitation) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            wanted = {FEDERATION, INVITED} | ({SKETCHES} & set(entries))
            if set(entries) != wanted or any(e.file_size > MAX_BYTES for e in entries.values()):
                raise DataError(
                    f"invitation: must hold {FEDERATION} and {INVITED}, and may hold {SKETCHES}, each under "
                    "1 MiB; it does not. Ask the coordinator for a new one."
                )
            return {name: archive.read(name) for name in entries}
    except zipfile.BadZipFile as fault:
        raise DataError("invitation: must be a zip file; it is not.") from fault


def _parse_name(content: bytes) -> str:
    try:
        name = tomllib.loads(content.decode()).get("name")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        name = None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DataError(
            f"invitation: {INVITED} must name a site with letters, digits, - and _; it does not. Ask the "
            "coordinator for a new one."
        )
    return name


def approve_federation(site_file: Path, digest: str) -> None:
    """Write the hospital's approval into its own file.

    Raises:
        ConfigurationError: If ``digest`` is not the federation file's.
    """
    _, settings, _ = read_site_file(site_file)
    if len(digest) < 12 or not settings.digest.startswith(digest):
        raise ConfigurationError(
            f"approval: the federation file's digest begins with {settings.digest[:16]}; found "
            f"{digest[:16]}. Read the "
            "file again before you approve it."
        )
    lines = site_file.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.replace(" ", "").startswith("approved=")]
    # Before the first table: what follows one belongs to it.
    table = next((n for n, line in enumerate(kept) if line.lstrip().startswith("[")), len(kept))
    text = "\n".join([*kept[:table], f'approved = "{digest}"', *kept[table:]]) + "\n"
    write_durably(site_file, text.encode())
