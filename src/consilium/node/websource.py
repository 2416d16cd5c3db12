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
MAX_SERIES = 1000
"""In one answer; a service that has more is asked for the rest the next time."""


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
            NotDelivered: If the service does not answer as it should; what was fetched before is kept.
        """
        first = self._today() - timedelta(days=self._source.days - 1)
        filters = {
            "Modality": "CT",
            "StudyDate": f"{first:%Y%m%d}-{self._today():%Y%m%d}",
            **self._source.filters,
        }
        with web_answers(self._name):
            answer = self._client.search_for_series(
                search_filters=filters, fields=list(FIELDS), limit=MAX_SERIES
            )
        fetched = 0
        for row in answer:
            series, study, count = _text(row, SERIES_UID), _text(row, STUDY_UID), _text(row, INSTANCES)
            if not (series and study and count.isdigit()):
                continue
            steady = self._counts.get(series) == int(count)
            self._counts[series] = int(count)
            known = max(self._fetched.get(series, 0), self._queue.count_images(series))
            if steady and known < int(count):
                self._fetch(study, series, int(count))
                self._fetched[series] = int(count)
                fetched += 1
        return fetched

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
                        raise NotDelivered(f"{self._name}: nothing is fetched while the node's disk is full.")
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
