"""Files of keys and certificates that are refused, and how long the service's own certificate is good."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class KeyGauges(Collector):
    """Asked at every scrape; shows no series before ask, nor an expiry where there is no TLS."""

    def __init__(self) -> None:
        self._refused: Callable[[], Mapping[str, bool]] = dict
        self._expiry: Callable[[], float] | None = None

    def ask(self, refused: Callable[[], Mapping[str, bool]], expiry: Callable[[], float] | None) -> None:
        """Ask these from now on. refused: by a fixed name of the files; expiry: in seconds since 1970."""
        self._refused, self._expiry = refused, expiry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return what they say now."""
        refused = GaugeMetricFamily(
            "jobs_key_files_refused",
            "1 while what the files hold can't be used, so that what was read before stays in use.",
            labels=["files"],
        )
        for files, is_refused in self._refused().items():
            refused.add_metric([files], float(is_refused))
        expiry = GaugeMetricFamily(
            "jobs_certificate_expiry_timestamp_seconds",
            "When the certificate that the service shows ends, in seconds since 1970.",
        )
        if self._expiry is not None:
            expiry.add_metric([], self._expiry())
        yield from (refused, expiry)
