"""Answers that Postgres builds: one statement, JSON text, straight to the client.

A view of a noun is written once, as SQL; neither an ORM nor a model stands between the rows and the wire.
That the text fits the models of the API is held by `tests/gateway/test_views.py`.
"""

from typing import Any

from contracts.errors import InvalidInput
from fastapi import Response
from runtime.store import Store, scoped

SIZE = 50
# For a route that reads it from the request itself.
AFTER = {"in": "query", "name": "after", "required": False, "schema": {"type": "string"}}


def page(name: str, view: str, rows: str, key: str) -> str:
    """The newest first. `rows` is everything from `from` on; in it `scope.organization` is the caller's, and
    `{after}` the place where the page before ended."""
    bounded = rows.format(after=f"(%s::text is null or {key} < %s)")
    return scoped(
        f"""
        select json_build_object(
            '{name}', coalesce(json_agg(view order by key desc) filter (where place <= {SIZE}), '[]'),
            'next', case when count(*) > {SIZE} then (min(key) filter (where place <= {SIZE}))::text end
        )::text
        from (
            select {view} as view, {key} as key, row_number() over (order by {key} desc) as place
            {bounded} order by {key} desc limit {SIZE + 1}
        ) page
        """
    )


def single(view: str, rows: str) -> str:
    # Without the limit Postgres may look at the table before the organization's scope is set.
    return scoped(f"select ({view})::text {rows} limit 1")


async def rendered(store: Store, sql: str, *parameters: Any, status: int = 200) -> Response | None:
    """The statement's one value as an answer; None when there is no row."""
    rows = await store.read(sql, parameters)
    if not rows:
        return None
    return json(rows[0][0], status)


async def listed(store: Store, sql: str, scope: str, *parameters: Any, after: Any = None) -> Response:
    rows = await store.read(sql, (scope, *parameters, after, after))
    return json(rows[0][0])


def json(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


def number(after: str | None) -> int | None:
    if after is None or (after.isdecimal() and len(after) < 10):
        return None if after is None else int(after)
    raise InvalidInput("`after` is not from a `next` of this list", after=after)
