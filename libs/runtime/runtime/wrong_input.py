"""PURE. What is wrong with what was sent, field by field, for those who have not read the program."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from contracts.shapes import WORDS

# Nobody reads more of them, and somebody may send thousands.
_MOST = 50

_KINDS = {
    "missing": "is required",
    "extra_forbidden": "there is no such field",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_parsing_size": "should be a smaller number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "finite_number": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be text in quotes",
    "string_unicode": "should be text",
    "dict_type": "should be a JSON object",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "ip_v4_address": "should be an IPv4 address such as 203.0.113.5",
    "union_tag_not_found": "is required",
}


def fields_of(problems: Iterable[dict[str, Any]], body: Any) -> dict[str, str]:
    """The words of each field, by its place in what was sent; `problems` are pydantic's."""
    said: dict[str, list[str]] = {}
    for problem in islice(problems, _MOST):
        words = said.setdefault(_field(problem, body), [])
        if _words(problem) not in words:
            words.append(_words(problem))
    # Of a value that may be of several kinds, the kind that fits best has its own fields named.
    return {
        name: " or ".join([words[0], *(one.removeprefix("should be ") for one in words[1:])])
        for name, words in said.items()
        if not any(other.startswith(f"{name}.") for other in said)
    }


def _field(problem: dict[str, Any], body: Any) -> str:
    """Where it is in what was sent: without the kind that a value of several kinds was taken for."""
    if problem["type"] == "json_invalid":
        return "body"
    source, *named = problem["loc"]
    if source != "body":
        return ".".join(map(str, named)) or "body"
    found = []
    for number, part in enumerate(named, 1):
        listed = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if listed or (isinstance(body, dict) and part in body):
            body = body[part]
        elif number < len(named) or problem["type"] != "missing":
            continue
        found.append(str(part))
    if problem["type"].startswith("union_tag_"):
        found.append(problem["ctx"]["discriminator"].strip("'"))
    return ".".join(found) or "body"


def _parts(context: dict[str, Any]) -> str:
    # The length of a secret is told of like that of a list of no kind.
    return "characters" if context.get("field_type", "Value") == "Value" else "entries"


def _words(problem: dict[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    match kind:
        case _ if kind in _KINDS:
            return _KINDS[kind]
        case "json_invalid":
            return f"is no JSON: {context['error']} at character {problem['loc'][-1]}"
        case "string_pattern_mismatch" if context["pattern"] in WORDS:
            return f"should be {WORDS[context['pattern']]}"
        case "string_too_short" | "too_short" if context["min_length"] == 1:
            return "should not be empty"
        case "string_too_short" | "too_short":
            return f"should have at least {context['min_length']} {_parts(context)}"
        case "string_too_long" | "too_long":
            return f"should have at most {context['max_length']} {_parts(context)}"
        case "greater_than":
            return f"should be more than {context['gt']}"
        case "greater_than_equal":
            return f"should be at least {context['ge']}"
        case "less_than":
            return f"should be less than {context['lt']}"
        case "less_than_equal":
            return f"should be at most {context['le']}"
        case "literal_error":
            return f"should be {context['expected']}"
        case "union_tag_invalid":
            return f"should be {' or '.join(context['expected_tags'].split(', '))}"
        case "model_attributes_type" if problem["loc"] == ("body",):
            return "should be a JSON object, sent as content-type: application/json"
        case "model_attributes_type":
            return "should be a JSON object"
        case "value_error":
            return str(context["error"])
        case _ if kind.startswith("datetime"):
            return "should be a moment such as 2026-01-02T03:04:05Z"
        case _:
            return str(problem["msg"]).replace("Input should be", "should be")
