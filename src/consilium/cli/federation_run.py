"""``consilium federation simulate``, ``conclude``, ``council``, ``compare``: run it here; what came out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.cases.files import read_json, write_json
from consilium.cli.console import console, print_table, progress_bar
from consilium.errors import ConfigurationError, FederationError
from consilium.federation.contribution import Contribution, SealedStore
from consilium.federation.durable import write_durably
from consilium.federation.events import RoundEvent
from consilium.federation.federation_file import read_federation_file, read_site_file
from consilium.federation.invitation import FEDERATION, SITE
from consilium.federation.parameters import Parameters
from consilium.federation.reciprocity import Statement
from consilium.federation.service import INITIAL, load_training, stopped_event, watch_folder
from consilium.federation.settings import FederationSettings
from consilium.federation.simulation import simulate as run_simulation
from consilium.federation.store import FINAL, FolderStore, SiteStore
from consilium.federation.tensors import Tensors, encode_tensors

if TYPE_CHECKING:
    from consilium.hospital.local_update import Hospital
    from consilium.hospital.outcome import Outcome

OUTCOME, COUNCIL, CONTRIBUTIONS, MEMORY = "outcome", "council.html", "contributions.json", "memory"
MODEL = "model.consilium"

Folder = Annotated[Path, typer.Argument(help="The federation's folder on this machine.")]
Sites = Annotated[list[Path], typer.Argument(help="Folders with a site.toml each.", exists=True)]


def simulate(
    folder: Folder,
    sites: Sites,
    workers: Annotated[int, typer.Option(help="Hospitals that train at the same time.")] = 1,
) -> None:
    """[bold]Rehearse:[/bold] run the same federation file with all hospitals on this machine.

    The same checks, rounds and journal as between hospitals, in one process without a network. Run it again
    after an interruption. With keep_updates = true it also measures what each hospital contributed.
    """
    settings, _ = read_federation_file(folder / FEDERATION)
    files = {read_site_file(path / SITE)[0].name: path / SITE for path in sites}
    updates = {n: load_training(path, read_site_file(path)[0].training) for n, path in files.items()}
    initial = write_first_model(folder)
    stores = {name: FolderStore(path.parent / MEMORY) for name, path in files.items()}
    kept = SealedStore(folder / "sealed") if settings.keep_updates else None
    watch = watch_folder(folder, say_event)

    def store_of(name: str) -> SiteStore:
        return stores[name]

    try:
        final = run_simulation(
            settings,
            initial,
            updates,
            folder / "journal",
            workers=workers,
            stores=store_of,
            watch=watch,
            keep=kept.keep if kept else None,
        )
        write_durably(folder / FINAL, encode_tensors(final))
        write_model(folder)
        if kept is not None:
            _contribute(folder, settings, kept, updates)
    except FederationError as fault:
        watch(stopped_event(settings.rounds, fault))
        raise
    finally:
        for store in stores.values():
            store.close()
        if kept is not None:
            kept.destroy()
    console.print(f"Done. The model is {folder / FINAL}.", markup=False)


def conclude(
    site: Annotated[Path, typer.Argument(help="This hospital's folder of the federation.", exists=True)],
) -> None:
    """[bold]Hospital, at the end:[/bold] own model, the federation's, or that fine-tuned here?

    Trains the two that are missing, judges all three on the patients that were held out, keeps the best as
    outcome/given.consilium, and writes a page. outcome/outcome.json holds means only: send it to the council.
    """
    from consilium.hospital.local_update import open_hospital

    with progress_bar() as progress:
        hospital = open_hospital(site / SITE, progress=progress)
        outcome = _conclude(site, hospital, _read_final(site / MEMORY))
    _print_outcomes({outcome.site: outcome})
    console.print(f"Page: {site / OUTCOME / 'outcome.html'}", markup=False)


def council(
    folder: Folder,
    outcomes: Annotated[list[Path], typer.Argument(help="The hospitals' outcome.json.", exists=True)],
) -> None:
    """[bold]Coordinator, at the end:[/bold] sign what each hospital gave and got; write the page."""
    from consilium.hospital.outcome import Outcome

    found = {o.site: o for o in (Outcome.from_json(read_json(path)) for path in outcomes)}
    _hold_council(folder, found)


def compare(
    folder: Folder,
    sites: Sites,
    pooled: Annotated[bool, typer.Option(help="Also train on all hospitals' cases in one place.")] = True,
) -> None:
    """[bold]Rehearse:[/bold] each hospital alone, all together, and all in one place, on every hold-out.

    For federations whose hospitals are all on this machine; concludes for each and holds the council.
    """
    from consilium.hospital.comparison import ALONE, FEDERATED, POOLED, train_references
    from consilium.hospital.comparison import compare as compare_models
    from consilium.hospital.local_update import open_hospital

    with progress_bar() as progress:
        hospitals = {h.name: h for h in (open_hospital(path / SITE, progress=progress) for path in sites)}
    folders = dict(zip(hospitals, sites, strict=True))
    models = train_references(hospitals, pooled=pooled, say=lambda text: console.print(text, markup=False))
    final = _read_final(folder)
    reference = {POOLED: models.pop(POOLED)} if pooled else {}
    outcomes = {
        name: _conclude(folders[name], hospital, _read_final(folders[name] / MEMORY), models[name + ALONE])
        for name, hospital in hospitals.items()
    }
    console.print("comparing on every hold-out")
    comparison = compare_models(hospitals, {**models, FEDERATED: final, **reference})
    write_json(folder / "comparison.json", comparison.to_json())
    _hold_council(folder, outcomes, comparison=comparison)


def write_first_model(folder: Path) -> Parameters:
    """The first model of a coordinator's folder; made from the plan where the file is not there yet.

    Raises:
        ConfigurationError: There is neither.
    """
    from consilium.hospital.agreement import read_agreement

    if not (folder / INITIAL).exists():
        settings, _ = read_federation_file(folder / FEDERATION)
        initial = read_agreement(settings).build_initial()
        write_durably(folder / INITIAL, encode_tensors(initial))
    return dict(Tensors(folder / INITIAL))


def write_model(folder: Path) -> None:
    """The common model as a file for `consilium contour`, where the federation has an agreed plan.

    With local normalisation there is none: each hospital's own numbers complete it; see `conclude`.
    """
    from consilium.hospital.agreement import read_agreement
    from consilium.hospital.outcome import save_parameters

    settings, _ = read_federation_file(folder / FEDERATION)
    if "plan" not in settings.training or settings.local_names:
        return
    note = {"federation": settings.name, "sites": len(settings.sites), "rounds": settings.rounds}
    save_parameters(folder / MODEL, read_agreement(settings), _read_final(folder), note)
    console.print(f"Model file: {folder / MODEL}", markup=False)


def describe(event: RoundEvent) -> str:
    """One line for people."""
    if event.kind in ("finished", "stopped"):
        return f"{event.kind}: {event.detail}"
    where = f"round {event.round_number + 1} of {event.rounds}"
    if event.kind == "waiting":
        return f"{where}: {event.accepted} updates; waits {event.seconds_left:.0f} s more for {event.detail}"
    if event.kind == "committed":
        figures = ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
        return (
            f"{where}: combined from {event.accepted} sites; {figures}; about {event.seconds_left:.0f} s left"
        )
    about = f" {event.site}" if event.site else ""
    return f"{where}: {event.kind}{about}{': ' + event.detail if event.detail else ''}"


def say_event(event: RoundEvent) -> None:
    """Print an event; a waiting round says so twice a minute."""
    waits = event.kind == "waiting" and int(event.seconds_left) % 30 == 0
    if waits or event.kind not in ("waiting", "opened", "closed"):
        console.print(describe(event), markup=False, highlight=False)


def _contribute(
    folder: Path, settings: FederationSettings, kept: SealedStore, updates: Mapping[str, object]
) -> None:
    """Leave-one-out on the hold-outs, where every training is a hospital's dataset."""
    from consilium.hospital.comparison import measure_contributions
    from consilium.hospital.local_update import Hospital

    hospitals = {name: update for name, update in updates.items() if isinstance(update, Hospital)}
    if not kept.list_rounds() or not any(hospital.hold_out for hospital in hospitals.values()):
        return
    console.print("measuring what each hospital contributed …")
    found = measure_contributions(settings, kept, hospitals)
    write_json(folder / CONTRIBUTIONS, [vars(c) | {"mean_gain": _number(c.mean_gain)} for c in found])


def _number(value: float) -> float | None:
    return value if value == value else None


def _conclude(
    site: Path, hospital: "Hospital", final: Parameters, local: Parameters | None = None
) -> "Outcome":
    from consilium.hospital.outcome import conclude as judge_three
    from consilium.hospital.pages import write_site_page

    console.print(f"{hospital.name}: own, common and fine-tuned model on its hold-out …", markup=False)
    outcome = judge_three(hospital, final, site / OUTCOME, local=local)
    settings = read_site_file(site / SITE)[1]
    write_json(site / OUTCOME / "outcome.json", outcome.to_json())
    write_site_page(site / OUTCOME / "outcome.html", outcome, federation=settings.name)
    return outcome


def _hold_council(folder: Path, outcomes: "Mapping[str, Outcome]", *, comparison: object = None) -> None:
    from consilium.hospital.comparison import Comparison
    from consilium.hospital.council import state_outcomes
    from consilium.hospital.pages import write_council_page

    settings, _ = read_federation_file(folder / FEDERATION)
    path = folder / CONTRIBUTIONS
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    contributions = [
        Contribution(
            site=entry["site"],
            mean_gain=float("nan") if entry["mean_gain"] is None else entry["mean_gain"],
            rounds=entry["rounds"],
            same_as=tuple(entry.get("same_as", ())),
        )
        for entry in entries
    ]
    statements: Sequence[Statement] = ()
    try:
        statements = state_outcomes(folder, settings, outcomes, contributions)
    except ConfigurationError as fault:
        console.print(f"No statement was signed. {fault}", markup=False)
    tables = write_council_page(
        folder / COUNCIL,
        federation=settings.name,
        outcomes=outcomes,
        statements=statements,
        contributions=contributions,
        comparison=comparison if isinstance(comparison, Comparison) else None,
    )
    for table in tables:
        shown = [k for k, name in enumerate(table.columns) if "95 %" not in name]
        rows = [[row[k] for k in shown] for row in table.rows]
        print_table(table.title, [table.columns[k] for k in shown], rows)
    console.print(f"Page: {folder / COUNCIL}", markup=False)


def _print_outcomes(outcomes: "Mapping[str, Outcome]") -> None:
    from consilium.hospital.pages import outcome_table

    table = outcome_table(outcomes)
    print_table(table.title, table.columns, table.rows)


def _read_final(folder: Path) -> Parameters:
    path = folder / FINAL
    if not path.is_file():
        raise ConfigurationError(
            f"{folder.name}: must hold {FINAL}, the federation's last model. Join or simulate first."
        )
    return dict(Tensors(path))
