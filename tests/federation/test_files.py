"""The two TOML files, invitations and approval."""

import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilium.cli.federation import app
from consilium.errors import ConfigurationError, DataError
from consilium.federation.federation_file import check_approval, read_federation_file, read_site_file
from consilium.federation.invitation import (
    BUILT_IN,
    FEDERATION_TEMPLATE,
    accept_invitation,
    approve_federation,
    write_invitation,
)
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.parameters import Parameters
from consilium.federation.service import load_training, read_status
from consilium.federation.settings import build_settings, encode_settings
from tests.federation.toys import HEADS, build_settings_for

TRAINING = "tests.federation.test_files:build_training"


def build_training(site_file: Path) -> LocalUpdate:
    """What a site file names."""

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        return SiteResult(parameters=parameters, weight=len(site_file.name))

    return train


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator" / "federation.toml").write_text(FEDERATION_TEMPLATE)
    return tmp_path / "coordinator"


def test_the_template_is_a_valid_federation(coordinator: Path) -> None:
    settings, place = read_federation_file(coordinator / "federation.toml")
    assert [site.name for site in settings.sites] == ["hospital-a", "hospital-b"]
    assert place is not None
    assert place.port == 8702


def test_settings_survive_plain_values() -> None:
    settings = build_settings_for(3, heads=HEADS, local_names=("*.norm.*",))
    again = build_settings(encode_settings(settings))
    assert again == settings
    assert again.digest == settings.digest


def test_every_setting_changes_the_digest() -> None:
    plain = build_settings_for(3)
    changes: list[dict[str, object]] = [
        {"rounds": 4},
        {"clipping_norm": 2.0},
        {"seed": 1},
        {"keep_updates": True},
    ]
    assert len({plain.digest, *(build_settings_for(3, **change).digest for change in changes)}) == 5


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rounds = 20", "rounds = 0", "rounds must be 1 to"),
        ("rounds = 20", "rouns = 20", "'rouns' is not a setting"),
        ("quorum = 2 ", "quorum = 3 ", "quorum must be 1 to 2"),
        ("cases = 40", "cases = -1", "cases must be 1 to"),
        ("cases = 40", "cases = 40\npatients = 3", "patients"),
        ('"hospital-b"', '"hospital-a"', "names of their own"),
        ('"hospital-b"', '"../b"', "letters, digits"),
        ("give_up_s = 86400", "give_up_s = 1", "give_up_s must be 3600"),
        ("port = 8702", "port = 0", "port must be"),
        ("rounds = 20", 'rounds = 20\nlocal_names = "*.norm.*"', r"local_names must be a list .* '\*.norm"),
        ("rounds = 20", "rounds = 20\nlocal_names = [1]", "local_names must be a list of texts"),
        ("[strategy]", '[heads]\nstructures = "Bladder"\n[strategy]', "heads.structures must be a list"),
        ("[strategy]", "[strategy", "must be TOML"),
    ],
)
def test_a_wrong_federation_file_says_what_is_wrong(
    coordinator: Path, old: str, new: str, reason: str
) -> None:
    path = coordinator / "federation.toml"
    assert old in FEDERATION_TEMPLATE
    path.write_text(FEDERATION_TEMPLATE.replace(old, new))
    with pytest.raises(ConfigurationError, match=reason):
        read_federation_file(path)


def test_an_invited_hospital_approves_before_it_can_train(coordinator: Path, tmp_path: Path) -> None:
    settings = write_invitation(coordinator, "hospital-a", tmp_path / "i.zip")
    assert accept_invitation(tmp_path / "i.zip", tmp_path / "a", training=TRAINING) == "hospital-a"
    file = tmp_path / "a" / "site.toml"
    site, found, _ = read_site_file(file)
    assert found == settings
    with pytest.raises(ConfigurationError, match="must be the digest of the federation file; found nothing"):
        check_approval(site, found)
    with pytest.raises(ConfigurationError, match="Read the file again"):
        approve_federation(file, "0" * 16)
    approve_federation(file, settings.digest[:12])
    check_approval(read_site_file(file)[0], found)
    changed = (coordinator / "federation.toml").read_text().replace("rounds = 20", "rounds = 21")
    (tmp_path / "a" / "federation.toml").write_text(changed)
    site, found, _ = read_site_file(file)
    with pytest.raises(ConfigurationError, match="approved must be"):
        check_approval(site, found)
    assert load_training(file, site.training) is not None


def test_a_site_that_is_not_enrolled_is_not_invited(coordinator: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hospital-z is not in"):
        write_invitation(coordinator, "hospital-z", tmp_path / "i.zip")


def test_an_invitation_that_holds_anything_else_is_refused(coordinator: Path, tmp_path: Path) -> None:
    write_invitation(coordinator, "hospital-a", tmp_path / "i.zip")
    with zipfile.ZipFile(tmp_path / "i.zip", "a") as archive:
        archive.writestr("../evil.py", "pass")
    with pytest.raises(DataError, match="must hold"):
        accept_invitation(tmp_path / "i.zip", tmp_path / "a")
    (tmp_path / "no.zip").write_bytes(b"no")
    with pytest.raises(DataError, match="must be a zip"):
        accept_invitation(tmp_path / "no.zip", tmp_path / "a")
    assert not (tmp_path / "evil.py").exists()


def test_an_invitation_chooses_nothing_but_the_sites_name(coordinator: Path, tmp_path: Path) -> None:
    write_invitation(coordinator, "hospital-a", tmp_path / "i.zip")
    accept_invitation(tmp_path / "i.zip", tmp_path / "honest")
    site = 'name = "hospital-a"\ntraining = "runpy:run_path"\napproved = "{}"\nfederation = "{}"\n'
    for number, file in enumerate(("site.toml", "invitation.toml")):
        invitation = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(invitation, "w") as archive:
            archive.writestr("federation.toml", FEDERATION_TEMPLATE)
            archive.writestr(file, site)
        if file == "site.toml":
            with pytest.raises(DataError, match="must hold"):
                accept_invitation(invitation, tmp_path / "a")
        else:
            accept_invitation(invitation, tmp_path / "a")
    own = (tmp_path / "a" / "site.toml").read_text()
    assert own == (tmp_path / "honest" / "site.toml").read_text()
    assert read_site_file(tmp_path / "a" / "site.toml")[0].training == BUILT_IN


@pytest.mark.parametrize("name", ['"a\\"\\ntraining = \\"runpy:run_path"', '"../a"', "1", '["a"]', '"'])
def test_an_invitation_whose_name_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("federation.toml", FEDERATION_TEMPLATE)
        archive.writestr("invitation.toml", f"name = {name}\n")
    with pytest.raises(DataError, match="must name a site"):
        accept_invitation(tmp_path / "i.zip", tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("training", ["os", "os.system", "os:system('x')", ":x", "a b:c"])
def test_a_training_that_is_no_name_is_refused(coordinator: Path, tmp_path: Path, training: str) -> None:
    write_invitation(coordinator, "hospital-a", tmp_path / "i.zip")
    with pytest.raises(ConfigurationError, match="training must be module:function"):
        accept_invitation(tmp_path / "i.zip", tmp_path / "a", training=training)


def test_a_training_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no_such_module:build cannot be imported here"):
        load_training(tmp_path / "site.toml", "no_such_module:build")


def test_the_verbs_explain_themselves_and_init_writes_a_template(tmp_path: Path) -> None:
    runner = CliRunner()
    for verb in ("init", "invite", "enrol", "approve", "serve", "join", "status", "resume"):
        assert runner.invoke(app, [verb, "--help"]).exit_code == 0
    assert runner.invoke(app, ["init", str(tmp_path / "f")]).exit_code == 0
    assert read_federation_file(tmp_path / "f" / "federation.toml")[0].rounds == 20
    assert runner.invoke(app, ["status", str(tmp_path / "f")]).exit_code == 0
    assert read_status(tmp_path / "f") is None
