"""What the README's tables say is what the code does."""

import re
from pathlib import Path

import yaml

from jobs_service import config
from jobs_service.cli import ExitCode
from jobs_service.transport.errors import STATUS, Reason

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_setting_stands_in_the_readme_with_default_and_reason() -> None:
    for name, default, about in config.variables():
        shown = "unset" if default is None else f"`{default}`"
        assert f"| `{name}` | {shown} | {about} |" in README


def test_the_readme_has_no_setting_that_is_none() -> None:
    known = {name for name, _, _ in config.variables()}
    assert set(re.findall(r"`(JOBS_[A-Z_]*[A-Z])`", README)) <= known


def test_every_error_stands_in_the_readme() -> None:
    rows = set(re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \|", README, re.MULTILINE))
    given = {
        (code.name, Reason.Name(reason).removeprefix("ERROR_REASON_")) for code, reason in STATUS.values()
    }
    assert rows == given


def test_every_exit_code_stands_in_the_readme() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d) \|", README, re.MULTILINE)] == list(ExitCode)


def test_every_alert_stands_in_the_readme_with_its_severity() -> None:
    alerts = (Path(__file__).parents[2] / "scripts/alerts.yaml").read_text()
    groups = yaml.safe_load(alerts)["groups"]
    known = {(rule["alert"], rule["labels"]["severity"]) for group in groups for rule in group["rules"]}
    assert set(re.findall(r"^\| `(Jobs[A-Za-z]+)` \| (\w+) \| ", README, re.MULTILINE)) == known


def _rows(title: str) -> list[list[str]]:
    """The cells of the tables in a section of the code's README."""
    text = (ROOT / "jobs_service/README.md").read_text()
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]


def test_every_pair_of_events_has_an_outcome_and_every_outcome_a_test_that_is_there() -> None:
    head, *rows = _rows("What may happen at once")
    events = [cell.strip() for cell in head[1:]]
    pairs, outcomes = rows[: len(events)], rows[len(events) + 1 :]
    said = {cell.strip() for row in pairs for cell in row[1:]} - {"", "–"}
    assert [row[0].strip() for row in pairs] == events
    for place, row in enumerate(pairs):
        assert [bool(cell.strip()) for cell in row[1:]] == [other >= place for other in range(len(events))]
    assert said == {row[0].strip() for row in outcomes}
    for _, _, shown in outcomes:
        file, name = shown.strip(" `").split(":")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()
