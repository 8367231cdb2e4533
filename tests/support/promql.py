"""What a PromQL expression asks for: the metrics and the labels that it names."""

import re
from dataclasses import dataclass

_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(\s*\()?")
_WORDS = {"and", "or", "unless", "bool", "offset", "atan2"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Names of series (jobs_calls_total, jobs_call_seconds_bucket) and of labels."""

    metrics: frozenset[str]
    labels: frozenset[str]


def asked(expression: str) -> Asked:
    """Parse an expression; what is no function, no operator and no label is a metric."""
    text = _STRING.sub('""', expression)
    labels: set[str] = set()
    for grouped in _GROUPING.findall(text):
        labels.update(name.strip() for name in grouped.split(",") if name.strip())
    text = _GROUPING.sub(" ", text)
    for matchers in _MATCHERS.findall(text):
        labels.update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    text = _RANGE.sub(" ", _MATCHERS.sub(" ", text))
    names = {name for name, call in _NAME.findall(text) if not call} - _WORDS
    return Asked(frozenset(names), frozenset(labels))
