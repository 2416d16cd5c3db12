"""The table of verbs; a verb's module is loaded only when it is called or its own help is shown."""

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import typer
import typer.core
import typer.main

VERBS: dict[str, str] = {
    "demo": "consilium.cli.demo:demo",
    "import": "consilium.cli.importing:import_",
    "info": "consilium.cli.info:info",
    "plan": "consilium.cli.plan:plan",
    "train": "consilium.cli.train:train",
    "evaluate": "consilium.cli.evaluate:evaluate",
    "pack": "consilium.cli.pack:pack",
    "convert": "consilium.cli.convert:convert",
    "contour": "consilium.cli.contour:contour",
    "adapt": "consilium.cli.adapt:adapt",
    "export": "consilium.cli.exporting:export",
    "review": "consilium.cli.review:review",
    "report": "consilium.cli.report:report",
    "validate": "consilium.cli.validate:validate",
    "names": "consilium.cli.names:names",
    "study": "consilium.cli.study:study",
    "learning-curve": "consilium.cli.learning_curve:learning_curve",
    "standardise": "consilium.cli.standardise:standardise",
    "audit": "consilium.cli.audit:audit",
    "node": "consilium.cli.node:app",
    "deidentify": "consilium.cli.deidentify:deidentify",
    "federation": "consilium.cli.federation:app",
    "commission": "consilium.cli.commission:commission",
    "features": "consilium.cli.features:features",
    "characterise": "consilium.cli.characterise:characterise_verb",
}
"""Verb -> ``module:function`` (a typer-annotated function) or ``module:app`` (a typer application)."""

HELP = """Hospitals learn one contouring model together while every record stays home.

The usual way: [bold]import[/bold] a folder into a dataset, look at it with [bold]info[/bold],
[bold]train[/bold] a run on it, [bold]evaluate[/bold] the run, and [bold]contour[/bold] a CT with it.
[bold]consilium demo[/bold] does all of this on phantom patients.
"""


class LazyGroup(typer.core.TyperGroup):
    """A group of commands that imports a verb's module on demand."""

    _is_listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Every verb, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one verb; for the list of all only what it says of itself, which takes no import."""
        if cmd_name not in VERBS:
            return None
        return (
            typer.core.TyperCommand(cmd_name, help=read_help(cmd_name))
            if self._is_listing
            else load_verb(cmd_name)
        )

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help with the list of verbs."""
        self._is_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_listing = False


def read_help(verb: str) -> str:
    """A verb's docstring from its source: to import every verb would take seconds."""
    module_name, _, attribute = VERBS[verb].partition(":")
    spec = importlib.util.find_spec(module_name)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if node.name == attribute or f"{attribute}.callback()" in decorators:
                return ast.get_docstring(node) or ""
    return ""


def load_verb(verb: str) -> Any:
    """The command of a verb."""
    module_name, _, attribute = VERBS[verb].partition(":")
    target: Any = getattr(importlib.import_module(module_name), attribute)
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name=verb)(target)
        target = app
    command: Any = typer.main.get_command(target)
    command.name = verb
    return command


def build_command() -> Any:
    """The whole command line."""
    app = typer.Typer(
        cls=LazyGroup, help=HELP, add_completion=False, rich_markup_mode="rich", no_args_is_help=True
    )

    def version(value: bool) -> None:
        if value:
            import consilium

            typer.echo(f"consilium {consilium.__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        _version: bool = typer.Option(
            False, "--version", callback=version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        """Hold the options of the whole program."""

    command: Any = typer.main.get_command(app)
    command.help = HELP
    return command
