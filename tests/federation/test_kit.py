"""Making the certificates a second time; what FLARE itself does is tested in `test_engine`."""

from pathlib import Path

import pytest

from consilium.errors import ConfigurationError, FederationError
from consilium.federation.engine import kit
from consilium.federation.federation_file import Coordinator

PLACE = Coordinator(host="localhost", port=8702)


class Flare:
    """Stands for FLARE's command line: makes the files it would make; it can be killed before one word."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stop_before = ""

    def __call__(self, folder: Path, *words: object) -> None:
        word = " ".join(map(str, words[:2] if words[0] == "cert" else words[:1]))
        if word == self.stop_before:
            raise FederationError(f"killed before {word}")
        self.said.append(word)
        if word == "cert init":
            (folder / "authority" / "ca").mkdir()
            (folder / "authority" / "ca" / "rootCA.pem").write_text(f"root {len(self.said)}")
        if word == "cert request":
            (folder / "request").mkdir()
        if word == "package":
            (folder / "packed" / "toy" / "prod_00" / "localhost").mkdir(parents=True)


@pytest.fixture
def flare(monkeypatch: pytest.MonkeyPatch) -> Flare:
    made = Flare()
    monkeypatch.setattr(kit, "_run", made)
    monkeypatch.setattr(kit, "compute_fingerprint", Path.read_text)
    return made


def test_a_second_time_the_certificates_stay_and_the_fingerprint_is_told_again(
    tmp_path: Path, flare: Flare
) -> None:
    first = kit.init_authority(tmp_path, "toy", PLACE)
    said = list(flare.said)
    assert kit.init_authority(tmp_path, "toy", PLACE) == first
    assert flare.said == said
    with pytest.raises(ConfigurationError, match="made for others"):
        kit.init_authority(tmp_path, "toy", Coordinator(host="elsewhere", port=8702))


@pytest.mark.parametrize("word", ["cert init", "cert request", "cert approve", "package"])
def test_after_an_interruption_the_authority_begins_anew(tmp_path: Path, flare: Flare, word: str) -> None:
    flare.stop_before = word
    with pytest.raises(FederationError, match="killed before"):
        kit.init_authority(tmp_path, "toy", PLACE)
    with pytest.raises(FederationError, match="killed before"):
        kit.init_authority(tmp_path, "toy", PLACE)
    flare.stop_before = ""
    fingerprint = kit.init_authority(tmp_path, "toy", PLACE)
    assert fingerprint == (tmp_path / "authority" / "ca" / "rootCA.pem").read_text()
    assert (tmp_path / "kit").is_dir()
    assert kit.init_authority(tmp_path, "toy", PLACE) == fingerprint
