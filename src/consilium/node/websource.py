"""A DICOMweb service as a source: asked again and again for new series, which are then fetched whole."""

import io
import time
import uuid
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit

from pydicom import dcmwrite

from consilium.node.deliver import NotDelivered, build_web_client, web_answers
from consilium.node.intake import Intake, Taken
from consilium.node.queue import Queue
from consilium.node.settings import WebSource

SERIES_UID, STUDY_UID, INSTANCES = "0020000E", "0020000D", "00201209"
FIELDS = ("SeriesInstanceUID", "StudyInstanceUID", "NumberOfSeriesRelatedInstances")
PAGE = 1000
"""Series in one answer; then for the next ones is asked."""
LEAST_DAYS = 2
"""Yesterday is always asked for: a scan just before midnight is fetched after it."""


class _NoRoom(NotDelivered):
    """The node's disk is full: whatever else there is cannot be fetched either."""


class WebPoller:
    """Looks for series at one service.

    A series is fetched when two answers in a row give it the same number of instances: its scan has ended.

    Args:
        source: Where and what to ask.
        intake: Takes the objects.
        queue: Told when a series is complete.
        today: The date of now.
    """

    def __init__(
        self, source: WebSource, *, intake: Intake, queue: Queue, today: Callable[[], date] = date.today
    ) -> None:
        self._source, self._intake, self._queue, self._today = source, intake, queue, today
        self._name = str(urlsplit(source.url).hostname)
        self._client = build_web_client(source.url, source.token_file, source.tls)
        self._counts: dict[str, int] = {}
        self._fetched: dict[str, int] = {}

    def ask(self) -> int:
        """Ask once and fetch what is new.

        Returns:
            Number of series fetched.

        Raises:
            NotDelivered: If the service does not answer as it should, after every other series was fetched;
                or if there is no room for more.
        """
        fetched = 0
        faults: list[NotDelivered] = []
        for series, (study, count) in self._search().items():
            steady = self._counts.get(series) == count
            self._counts[series] = count
            known = max(self._fetched.get(series, 0), self._queue.count_images(series))
            if not steady or known >= count:
                continue
            try:
                self._fetch(study, series, count)
            except _NoRoom:
                raise
            except NotDelivered as fault:
                faults.append(fault)
            else:
                self._fetched[series] = count
                fetched += 1
        if faults:
            raise NotDelivered(
                f"{faults[0]} {len(faults)} series were not fetched; they are asked for again."
            )
        return fetched

    def _search(self) -> dict[str, tuple[str, int]]:
        """Series -> its study and number of instances: page after page, until one brings nothing new."""
        first = self._today() - timedelta(days=max(self._source.days, LEAST_DAYS) - 1)
        filters = {
            "Modality": "CT",
            "StudyDate": f"{first:%Y%m%d}-{self._today():%Y%m%d}",
            **self._source.filters,
        }
        found: dict[str, tuple[str, int]] = {}
        rows = 0
        while True:
            before = len(found)
            with web_answers(self._name):
                page = self._client.search_for_series(
                    search_filters=filters, fields=list(FIELDS), limit=PAGE, offset=rows
                )
                for row in page:
                    series, study, count = (_text(row, tag) for tag in (SERIES_UID, STUDY_UID, INSTANCES))
                    if series and study and count.isdigit():
                        found[series] = study, int(count)
            rows += len(page)
            if len(found) == before:
                return found

    def _fetch(self, study: str, series: str, count: int) -> None:
        association = uuid.uuid4().hex
        got, left_out = 0, 0
        try:
            with web_answers(self._name):
                for dataset in self._client.iter_series(study, series):
                    buffer = io.BytesIO()
                    dcmwrite(buffer, dataset, enforce_file_format=True)
                    taken = self._intake.take(buffer.getvalue(), association=association, sender=self._name)
                    if taken is Taken.FULL:
                        raise _NoRoom(f"{self._name}: nothing is fetched while the node's disk is full.")
                    got += 1
                    left_out += taken is Taken.LEFT_OUT
        except NotDelivered:
            self._queue.end_association(association, released=False)
            raise
        self._queue.end_association(association, released=got >= count)
        if got >= count and left_out < got:
            self._queue.mark_complete(series)


def _text(row: Any, tag: str) -> str:
    """The first value of an attribute in DICOM's JSON; "" if there is none (PS3.18 F.2)."""
    value = row.get(tag, {}).get("Value") if isinstance(row, dict) else None
    return str(value[0]) if value else ""


def poll(
    poller: WebPoller, every_s: float, *, wait: Callable[[float], bool], note: Callable[[str], None]
) -> None:
    """Ask until ``wait(seconds)`` says that the node stops; faults are told, and asked again."""
    while True:
        started = time.monotonic()
        try:
            poller.ask()
        except NotDelivered as fault:
            note(str(fault))
        if wait(max(0.0, every_s - (time.monotonic() - started))):
            return
