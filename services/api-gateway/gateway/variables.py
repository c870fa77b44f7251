"""Variables of an app: what its instances and its builds are told, kept sealed and shown masked.

Invariant: what the row holds for the builder, what it holds for the instances and the digest of that are
always made together, of the same variables. A change of what instances are told raises the generation, once
for all changes of a request, and so replaces them; what only builds are told waits for the next build.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from contracts import variables
from contracts.errors import InvalidInput, TooLarge
from contracts.variables import RESERVED, Scope, Variable
from contracts.variables_api import ChooseVariable, VariableList, VariableView
from fastapi import APIRouter, Body, Query, Request, Response
from runtime.seal import Seal
from runtime.store import Tx

from gateway import dotenv, workloads
from gateway.desk import Desk
from gateway.dotenv import MASK
from gateway.permissions import Member
from gateway.tables import WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["variables"])

MOST = 500
LONGEST_NAME = 128
LARGEST_VALUE = 32 * 1024
# All of them travel with every word about the app, and Linux takes them in one piece.
LARGEST_ALL = 64 * 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENV_FILE = {"requestBody": {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}}}

Change = ChooseVariable | None
Reveal = Annotated[bool, Query(description="Show the values of secrets too")]
Changes = Annotated[
    dict[str, str | ChooseVariable | None],
    Body(examples=[{"GREETING": "hello", "TOKEN": {"value": "…", "scope": "build"}, "OLD": None}]),
]


@router.get("/apps/{app}/variables")
async def list_variables(app: str, caller: Member, reveal: Reveal = False) -> VariableList:
    """Values of secrets are masked unless asked for."""
    return _shown(await _read(caller.desk, caller.organization, app), reveal)


@router.patch("/apps/{app}/variables")
async def change_variables(app: str, changes: Changes, caller: Member) -> VariableList:
    """Adds, changes and (with null) deletes, all or nothing; what is not named stays. Running instances are
    replaced, one release of them by the next, when what they are told has changed."""
    wanted = {name: _chosen(value) for name, value in changes.items()}
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        return _shown(await change(caller.desk, tx, row, wanted), reveal=False)


@router.post("/apps/{app}/variables/import", openapi_extra=_ENV_FILE)
async def import_variables(
    app: str, request: Request, caller: Member, scope: Scope | None = None, secret: bool | None = None
) -> VariableList:
    """Takes over a `.env` file, sent as it is: names in it are added or changed, all others stay."""
    body = await request.body()
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        found = dotenv.parse(_text(body))
        if not found:
            raise InvalidInput("the file names no variables; send lines such as NAME=value")
        wanted = {
            name: ChooseVariable.model_construct(value=value, scope=scope, secret=secret)
            for name, value in found.items()
        }
        return _shown(await change(caller.desk, tx, row, wanted), reveal=False)


@router.get("/apps/{app}/variables/export", response_class=Response)
async def export_variables(app: str, caller: Member) -> Response:
    """A `.env` file without the secrets: their names stand in it, masked. Imported again, it leaves those as
    they are."""
    found = await _read(caller.desk, caller.organization, app)
    return Response(dotenv.render(found), media_type="text/plain; charset=utf-8")


async def _read(desk: Desk, organization: str, app: str) -> Sequence[Variable]:
    async with desk.store.transaction(organization) as tx:
        row = await tx.get(WorkloadRow, app)
        if row is None or row.state == "deleted":
            raise workloads.no_such_app(app)
        return of(desk, row)


def of(desk: Desk, row: WorkloadRow) -> tuple[Variable, ...]:
    """By name."""
    if row.variables is None:
        return ()
    return variables.read_all(_seal(desk).open(row.variables, variables.for_builder(row.id)))


async def change(desk: Desk, tx: Tx, row: WorkloadRow, changes: Mapping[str, Change]) -> tuple[Variable, ...]:
    """The app's variables as they are then; `row` is locked by the caller."""
    before = {variable.name: variable for variable in of(desk, row)}
    after = dict(before)
    for name, wanted in changes.items():
        _check_name(name)
        if wanted is None:
            after.pop(name, None)
        else:
            after[name] = _changed(name, before.get(name), wanted)
    if after != before:
        now = tuple(sorted(after.values(), key=lambda variable: variable.name))
        _check_size(now)
        await _write(desk, tx, row, now)
        return now
    return tuple(before.values())


async def _write(desk: Desk, tx: Tx, row: WorkloadRow, now: tuple[Variable, ...]) -> None:
    seal = _seal(desk)
    row.variables = seal.close(variables.all_of(now), variables.for_builder(row.id)) if now else None
    told = variables.environment_of(now)
    anything = any(variable.at_runtime for variable in now)
    context = variables.for_scheduler(row.id)
    digest = seal.digest(told, context) if anything else None
    if digest != row.variables_digest:
        row.runtime_variables = seal.close(told, context) if anything else None
        row.variables_digest = digest
        workloads.change(tx, row)
        await workloads.settle(tx, row)


def _chosen(given: str | ChooseVariable | None) -> Change:
    # Unchecked: what is wrong with a value is said below, of its name.
    return ChooseVariable.model_construct(value=given) if isinstance(given, str) else given


def _changed(name: str, known: Variable | None, wanted: ChooseVariable) -> Variable:
    # The mask is what we show instead of a value: who sends it back has not changed the value.
    value = None if wanted.value == MASK else wanted.value
    if value is None and known is None:
        raise InvalidInput(f"{name} is new and needs a value", variable=name)
    known = known or Variable(name=name, value="")
    variable = Variable(
        name=name,
        value=known.value if value is None else value,
        scope=wanted.scope or known.scope,
        secret=known.secret if wanted.secret is None else wanted.secret,
    )
    if "\0" in variable.value or any("\ud800" <= character <= "\udfff" for character in variable.value):
        raise InvalidInput(
            f"the value of {name} holds what is no text, a NUL or half a character; encode it in base 64"
        )
    if len(variable.value.encode()) > LARGEST_VALUE:
        raise TooLarge(
            f"the value of {name} has more than {LARGEST_VALUE} bytes; keep it in a file of the source",
            variable=name,
            limit=LARGEST_VALUE,
        )
    return variable


def _check_name(name: str) -> None:
    if name in RESERVED:
        raise InvalidInput(f"{name} is reserved: {RESERVED[name]}", variable=name, reserved=sorted(RESERVED))
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise InvalidInput(
            f"{name[:LONGEST_NAME]!r} is no name for a variable; use letters, digits and _, at most "
            f"{LONGEST_NAME}, and no digit first"
        )


def _check_size(all_of_them: Sequence[Variable]) -> None:
    size = sum(len(v.name) + len(v.value.encode()) + 2 for v in all_of_them)
    if len(all_of_them) > MOST or size > LARGEST_ALL:
        raise TooLarge(
            f"an app has at most {MOST} variables of {LARGEST_ALL} bytes together; these would be "
            f"{len(all_of_them)} of {size}",
            limit=LARGEST_ALL,
        )


def _shown(found: Sequence[Variable], reveal: bool) -> VariableList:
    return VariableList(
        variables=tuple(
            VariableView(
                name=v.name,
                value=v.value if reveal or not v.secret else MASK,
                scope=v.scope,
                secret=v.secret,
            )
            for v in found
        )
    )


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("the file is not text in UTF-8") from error


def _seal(desk: Desk) -> Seal:
    return Seal(desk.seal_key("variables"))
