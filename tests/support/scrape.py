"""Metrics and probes as Prometheus and Kubernetes ask for them."""

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import ServiceProcess


@dataclass(frozen=True, slots=True)
class Scrape:
    """What was answered. kinds: by family; samples: by name, each with its labels and value."""

    text: str
    kinds: dict[str, str]
    samples: dict[str, list[tuple[dict[str, str], float]]]

    def values(self, name: str, **labels: str) -> list[float]:
        """The values of the series that have these labels."""
        found = self.samples.get(name, [])
        return [value for have, value in found if labels.items() <= have.items()]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels, 0 where there is none."""
        return sum(self.values(name, **labels))

    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """Every series, without its value."""
        return {
            (name, frozenset(labels.items())) for name, found in self.samples.items() for labels, _ in found
        }


def probe(service: ServiceProcess, path: str) -> int:
    """The status of /ready or /live; 0 where nobody listens."""
    try:
        with urllib.request.urlopen(_url(service, path), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def scrape(service: ServiceProcess) -> Scrape:
    """Read all metrics of a service."""
    with urllib.request.urlopen(_url(service, "/metrics"), timeout=10) as response:
        return parsed(response.read().decode())


def _url(service: ServiceProcess, path: str) -> str:
    serving: Mapping[str, object] = service.lines("serving metrics")[-1]
    return f"http://{serving['host']}:{serving['port']}{path}"


def parsed(text: str) -> Scrape:
    """Parse the text format; a family without samples is there with its kind."""
    kinds: dict[str, str] = {}
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        kinds[family.name] = family.type
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return Scrape(text, kinds, samples)
