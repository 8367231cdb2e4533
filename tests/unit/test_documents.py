"""What the README's tables say is what the code does."""

import re
from pathlib import Path

import yaml

from jobs_service import config
from jobs_service.cli import ExitCode
from jobs_service.transport.errors import STATUS, Reason

README = (Path(__file__).parents[2] / "README.md").read_text()


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
