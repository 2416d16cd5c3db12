"""``consilium federation``: found a federation, enrol in one, serve, join, look, resume."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from consilium.cli import federation_plan, federation_run
from consilium.cli.console import console, print_table
from consilium.cli.federation_run import describe
from consilium.errors import ConfigurationError
from consilium.federation.federation_file import check_approval, read_federation_file, read_site_file
from consilium.federation.grow import extend_federation
from consilium.federation.invitation import (
    BUILT_IN,
    FEDERATION,
    FEDERATION_TEMPLATE,
    SITE,
    accept_invitation,
    approve_federation,
    write_invitation,
)
from consilium.federation.journal import Journal
from consilium.federation.rounds import check_fit
from consilium.federation.service import INITIAL, read_status
from consilium.federation.strategies import build_strategy

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

Folder = Annotated[Path, typer.Argument(help="The federation's folder on this machine.")]


@app.callback()
def federation() -> None:
    """Learn together with other hospitals; the records stay home."""


@app.command()
def init(folder: Folder) -> None:
    """[bold]Coordinator, first:[/bold] write federation.toml, or, once you have edited it, make the
    certificates.
    """
    from consilium.federation.engine import kit

    path = folder / FEDERATION
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(FEDERATION_TEMPLATE, encoding="utf-8")
        console.print(f"Wrote {path}. Edit it: name, sites, host. Then run this again.")
        return
    settings, coordinator = read_federation_file(path)
    check_fit(settings, build_strategy(settings.strategy))
    if coordinator is None:
        raise ConfigurationError(f"{FEDERATION}: needs [coordinator] with host and port. Add it.")
    fingerprint = kit.init_authority(folder, settings.name, coordinator)
    console.print(f"The federation's digest is      {settings.digest[:16]}")
    console.print(f"The certificate's fingerprint is {fingerprint}")
    console.print("Tell both to every hospital by telephone, and invite them.")


@app.command()
def invite(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Name of an enrolled site.")],
    out: Annotated[Path, typer.Argument(help="Zip file to send to it.")],
) -> None:
    """[bold]Coordinator:[/bold] write the invitation of one hospital."""
    settings = write_invitation(folder, site, out)
    console.print(f"Wrote {out}. It holds no secret. Its federation's digest is {settings.digest[:16]}.")


@app.command()
def enrol(
    invitation: Annotated[Path, typer.Argument(help="The zip from the coordinator.", exists=True)],
    folder: Folder,
    training: Annotated[
        str, typer.Option(help="module:function of your own installed training, instead of the built-in.")
    ] = BUILT_IN,
) -> None:
    """[bold]Hospital, first:[/bold] unpack the invitation, make the key (it stays here) and the request (it
    goes).
    """
    from consilium.federation.engine import kit
    from consilium.federation.engine.request import read_key_digest

    name = accept_invitation(invitation, folder, training=training)
    _, settings, _ = read_site_file(folder / SITE)
    request = kit.write_request(folder, settings.name, name)
    console.print(f"Send {request} to the coordinator. The key beside it never leaves this machine.")
    console.print(f"The coordinator may ask by telephone how it begins: {read_key_digest(request)[:16]}.")
    console.print(f"Read {folder / FEDERATION}; its digest is {settings.digest[:16]}.")


@app.command()
def approve(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="A hospital's request zip.", exists=True)],
) -> None:
    """[bold]Coordinator:[/bold] sign a hospital's request, after asking it for the request by another way."""
    from consilium.federation.engine import kit
    from consilium.federation.engine.request import check_request

    name = request.name.removesuffix(".request.zip")
    settings, _ = read_federation_file(folder / FEDERATION)
    if settings.get_site(name) is None:
        raise ConfigurationError(
            f"approve: {name} is not in {FEDERATION}. Add it there, or refuse the request."
        )
    digest = check_request(request, name)
    signed = kit.approve_request(folder, request)
    console.print(f"Signed: a client's certificate for {name}; its key begins with {digest[:16]}.")
    console.print(f"Send {signed} back to the hospital.")


@app.command()
def serve(
    folder: Folder,
    model: Annotated[
        Path | None,
        typer.Option(help="The first model, safetensors; by default what the plan says.", exists=True),
    ] = None,
) -> None:
    """[bold]Coordinator:[/bold] run the rounds until they are done; run it again after any interruption."""
    if model is not None and not (folder / INITIAL).exists():
        shutil.copy(model, folder / INITIAL)
    federation_run.write_first_model(folder)
    _serve(folder)


@app.command()
def resume(
    folder: Folder,
    grown: Annotated[
        Path | None,
        typer.Option(help="A federation file with more sites or structures, to go on with.", exists=True),
    ] = None,
) -> None:
    """[bold]Coordinator:[/bold] go on where the journal stands; with --grown, under a larger federation
    file.
    """
    with closing(Journal(folder / "journal")) as journal:
        journal.need_state()
        if grown is not None:
            old, _ = read_federation_file(folder / FEDERATION)
            new, _ = read_federation_file(grown)
            extend_federation(journal, old, new)
            shutil.copy(grown, folder / FEDERATION)
            console.print(f"Every site must approve the new digest: {new.digest[:16]}.")
    _serve(folder)


@app.command()
def join(
    folder: Folder,
    signed: Annotated[Path | None, typer.Option(help="The signed zip, the first time.", exists=True)] = None,
    fingerprint: Annotated[str, typer.Option(help="The fingerprint you were told, the first time.")] = "",
    accept: Annotated[
        str, typer.Option(help="The digest of federation.toml: you have read it and agree.")
    ] = "",
) -> None:
    """[bold]Hospital:[/bold] take part until the federation ends; run it again after any interruption."""
    from consilium.federation.engine import kit, supervise

    if signed is not None and not (folder / "kit").exists():
        if not fingerprint:
            raise ConfigurationError("join: --signed needs --fingerprint, as the coordinator told it.")
        kit.build_kit(folder, signed, fingerprint)
    if accept:
        approve_federation(folder / SITE, accept)
    site, settings, _ = read_site_file(folder / SITE)
    check_approval(site, settings)
    command = kit.configure_site(folder / SITE, site.name)
    supervise.supervise_site(command, folder, lambda text: console.print(text, markup=False))
    console.print(f"Done. The model is {folder / 'memory' / 'final.safetensors'}.")


@app.command()
def status(folder: Folder) -> None:
    """[bold]Coordinator:[/bold] say where the run stands and what it waits for."""
    event = read_status(folder)
    if event is None:
        console.print("Nothing has run here yet.")
        return
    console.print(describe(event), markup=False)
    if event.metrics:
        print_table("Last figures", ("figure", "value"), sorted(event.metrics.items()))


for verb in (
    federation_plan.sketch,
    federation_plan.plan,
    federation_run.simulate,
    federation_run.conclude,
    federation_run.council,
    federation_run.compare,
):
    app.command()(verb)


def _serve(folder: Path) -> None:
    from consilium.federation.engine import kit, supervise

    settings, _ = read_federation_file(folder / FEDERATION)
    command = kit.configure_coordinator(folder, sites=len(settings.sites))

    def warn(text: str) -> None:
        console.print(f"[yellow]{text}[/yellow]")

    supervise.supervise_coordinator(command, folder, federation_run.say_event, warn)
    federation_run.write_model(folder)
