"""What a hospital receives first: the federation file and a site file to fill in. No secret is in it."""

import zipfile
from pathlib import Path

from consilium.errors import ConfigurationError, DataError
from consilium.federation.durable import write_durably
from consilium.federation.federation_file import read_federation_file, read_site_file
from consilium.federation.settings import FederationSettings

MAX_BYTES = 2**20
FEDERATION, SITE = "federation.toml", "site.toml"
SKETCHES = "sketches.json"
"""What the plan was derived from; it goes with the invitation where there is one, so that each may check."""

SITE_TEMPLATE = """\
# This hospital's own file. Nothing in it leaves this machine, and nothing the coordinator sends changes it.
name = "{name}"
# An installed function that takes this file's path and returns the training; this one trains on a dataset.
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


def write_invitation(folder: Path, site: str, out: Path, *, training: str) -> FederationSettings:
    """Write the invitation of one enrolled site.

    Raises:
        ConfigurationError: If the federation file does not enrol it.
    """
    settings, _ = read_federation_file(folder / FEDERATION)
    if settings.get_site(site) is None:
        raise ConfigurationError(f"invitation: {site} is not in {FEDERATION}. Add it under [[sites]] first.")
    text = SITE_TEMPLATE.format(name=site, training=training, digest=settings.digest[:16])
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FEDERATION, (folder / FEDERATION).read_text(encoding="utf-8"))
        archive.writestr(SITE, text)
        if (folder / SKETCHES).is_file():
            archive.writestr(SKETCHES, (folder / SKETCHES).read_text(encoding="utf-8"))
    return settings


def accept_invitation(invitation: Path, folder: Path) -> str:
    """Unpack an invitation into an empty folder; returns the site's name.

    Raises:
        DataError: If it holds anything but its two small files.
        ConfigurationError: If the folder is in use or the files are wrong.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"enrol: the folder must be empty; {folder.name} is not.")
    try:
        with zipfile.ZipFile(invitation) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            wanted = {FEDERATION, SITE} | ({SKETCHES} & set(entries))
            if set(entries) != wanted or any(e.file_size > MAX_BYTES for e in entries.values()):
                raise DataError(
                    f"invitation: must hold {FEDERATION} and {SITE}, and may hold {SKETCHES}, each under "
                    "1 MiB; it does not."
                )
            contents = {name: archive.read(name) for name in entries}
    except zipfile.BadZipFile as fault:
        raise DataError("invitation: must be a zip file; it is not.") from fault
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    site, _, _ = read_site_file(folder / SITE)
    return site.name


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
