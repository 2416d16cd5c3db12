"""A DICOMweb source that pages, breaks off and passes midnight: no series is lost."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from consilium.node import websource
from consilium.node.deliver import NotDelivered
from consilium.node.intake import Intake
from consilium.node.objects import ObjectStore
from consilium.node.queue import Queue
from consilium.node.settings import WebSource
from consilium.node.websource import WebPoller
from tests.node.network import series

TODAY = date(2026, 3, 2)


class Service:
    """Answers like a DICOMweb client of a service with a few series; ``broken`` ones cannot be fetched."""

    def __init__(
        self, held: dict[str, list[Dataset]], *, broken: Exception | None = None, most: int = 99
    ) -> None:
        self.held, self.most = held, most
        self.broken = {next(iter(held)): broken} if broken else {}
        self.asked: list[str] = []

    def search_for_series(
        self, *, search_filters: dict[str, str], limit: int, offset: int = 0, **_: Any
    ) -> list[dict[str, Any]]:
        """At most ``most`` in one answer, whatever the limit is."""
        first, last = search_filters["StudyDate"].split("-")
        self.asked.append(first)
        rows = [images for images in self.held.values() if first <= images[0].StudyDate <= last]
        return [
            {
                websource.SERIES_UID: {"Value": [images[0].SeriesInstanceUID]},
                websource.STUDY_UID: {"Value": [images[0].StudyInstanceUID]},
                websource.INSTANCES: {"Value": [len(images)]},
            }
            for images in rows[offset : offset + min(limit, self.most)]
        ]

    def iter_series(self, _study: str, series_uid: str) -> Iterator[Dataset]:
        """Its images, or the fault half way."""
        for name, images in self.held.items():
            if images[0].SeriesInstanceUID == series_uid:
                yield images[0]
                if name in self.broken:
                    raise self.broken[name]
                yield from images[1:]


def held(folder: Path, *names: str, day: date = TODAY) -> dict[str, list[Dataset]]:
    found = {name: series(folder, name, seed=k) for k, name in enumerate(names)}
    for images in found.values():
        for image in images:
            image.StudyDate = f"{day:%Y%m%d}"
    return found


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = Queue(tmp_path / "queue.sqlite")
    yield queue
    queue.close()


def poller_of(service: Service, queue: Queue, folder: Path, today: list[date]) -> WebPoller:
    intake = Intake(ObjectStore(folder / "objects"), queue)
    source = WebSource(url="http://localhost/dicom-web")
    poller = WebPoller(source, intake=intake, queue=queue, today=lambda: today[0])
    poller._client = service
    return poller


def images_of(queue: Queue) -> list[int]:
    return [row["n"] for row in queue.table("SELECT count(*) AS n FROM objects GROUP BY series")]


@pytest.mark.parametrize("fault", [ValueError("no multipart"), AttributeError("no UID"), ConnectionError()])
def test_a_series_that_cannot_be_fetched_keeps_no_other_from_it(
    fault: Exception, tmp_path: Path, queue: Queue
) -> None:
    service = Service(held(tmp_path, "broken", "whole"), broken=fault)
    poller = poller_of(service, queue, tmp_path, [TODAY])
    assert poller.ask() == 0, "one answer does not say that the scan has ended"
    with pytest.raises(NotDelivered, match="1 series were not fetched"):
        poller.ask()
    assert sorted(images_of(queue)) == [1, 4]
    service.broken = {}
    assert poller.ask() == 1
    assert images_of(queue) == [4, 4]


def test_every_page_of_an_answer_is_asked_for(tmp_path: Path, queue: Queue) -> None:
    service = Service(held(tmp_path, "one", "two", "three", "four", "five"), most=2)
    poller = poller_of(service, queue, tmp_path, [TODAY])
    poller.ask()
    assert poller.ask() == 5
    assert images_of(queue) == [4] * 5


def test_a_scan_before_midnight_is_fetched_after_it(tmp_path: Path, queue: Queue) -> None:
    today = [TODAY]
    poller = poller_of(Service(held(tmp_path, "late")), queue, tmp_path, today)
    poller.ask()
    today[0] = date(2026, 3, 3)
    assert poller.ask() == 1
