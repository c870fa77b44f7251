"""What lets an app's builds into its private repository and its private registry: at most one of each.

Invariant: a secret is kept sealed, under the name of its app and purpose, and leaves only in that form, in
answer to the builder's question; what may be seen of it (host, user, public key) is kept beside it.
"""

import re
from collections.abc import Mapping
from typing import Annotated

from contracts import image_reference
from contracts.credentials import DeployKey, GitToken, Purpose, RegistryLogin, context, read_git
from contracts.errors import InvalidInput, NotFound
from contracts.git_address import parse
from contracts.queries import CredentialsOf, SealedCredentials
from contracts.sources_api import (
    ChooseGitCredential,
    ChooseKey,
    ChooseRegistryLogin,
    ChooseToken,
    CredentialList,
    CredentialView,
)
from contracts.workload import GitSource, ImageSource
from fastapi import APIRouter, Body, Response
from runtime.seal import Seal
from runtime.store import PLATFORM, Tx
from sqlalchemy import select

from gateway import deploy_keys, workloads
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.tables import CredentialRow, WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["credentials"])

_VISIBLE = re.compile(r"[!-~]+")


@router.get("/apps/{app}/credentials")
async def list_credentials(app: str, caller: Member) -> CredentialList:
    """What may be seen of them: no secret ever."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        found = await tx.scalars(
            select(CredentialRow).where(CredentialRow.workload == row.id).order_by(CredentialRow.purpose)
        )
        return CredentialList(credentials=tuple(_view(credential) for credential in found))


@router.put("/apps/{app}/credentials/git")
async def put_git_credential(
    app: str, chosen: Annotated[ChooseGitCredential, Body()], caller: Member
) -> CredentialView:
    """A token for HTTPS or a key for SSH; it takes the place of the one there is."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        return await keep_git(caller.desk, tx, row, chosen)


@router.put("/apps/{app}/credentials/registry")
async def put_registry_login(app: str, chosen: ChooseRegistryLogin, caller: Member) -> CredentialView:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        return await keep_registry(caller.desk, tx, row, chosen)


@router.delete("/apps/{app}/credentials/{purpose}", status_code=204, response_class=Response)
async def delete_credential(app: str, purpose: Purpose, caller: Member) -> None:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        found = await tx.get(CredentialRow, (row.id, purpose))
        if found is None:
            raise NotFound("the app has no such credential", purpose=purpose)
        await tx.delete(found)


async def keep_git(desk: Desk, tx: Tx, row: WorkloadRow, chosen: ChooseToken | ChooseKey) -> CredentialView:
    if isinstance(chosen, ChooseToken):
        token = _token(row, chosen)
        return await _keep(desk, tx, row, token, {"host": token.host, "user": token.user})
    key = _key(row, chosen, await _present(desk, tx, row))
    shown = {
        "public_key": deploy_keys.public_key(key.private_key, f"berth-{row.name}"),
        "host_keys": list(key.host_keys),
    }
    return await _keep(desk, tx, row, key, shown)


async def keep_registry(desk: Desk, tx: Tx, row: WorkloadRow, chosen: ChooseRegistryLogin) -> CredentialView:
    if chosen.host is not None:
        host = image_reference.registry(chosen.host)
    elif row.source is not None and row.source["kind"] == "image":
        host = image_reference.parse(ImageSource.model_validate(row.source).reference).host
    else:
        raise InvalidInput("name the registry's host: the app is made of no image that says it")
    login = RegistryLogin(host=host, user=chosen.user, password=chosen.password.get_secret_value())
    return await _keep(desk, tx, row, login, {"host": host, "user": login.user})


async def require_key(tx: Tx, row: WorkloadRow, source: GitSource) -> None:
    """Said at once, rather than by a build: SSH has no visitors."""
    if parse(source.url, allow_http=True).scheme != "ssh":
        return
    found = await tx.get(CredentialRow, (row.id, "git"))
    if found is None or found.shown["kind"] != "key":
        raise InvalidInput(
            "a Git URL over SSH needs a deploy key; PUT …/credentials/git with "
            '{"kind": "key"} makes one and shows its public half',
            url=source.url,
        )


async def sealed(desk: Desk, query: CredentialsOf) -> SealedCredentials:
    async with desk.store.transaction(PLATFORM) as tx:
        found = await tx.scalars(select(CredentialRow).where(CredentialRow.workload == query.workload))
    texts = {credential.purpose: credential.sealed for credential in found}
    return SealedCredentials(git=texts.get("git"), registry=texts.get("registry"))


def _token(row: WorkloadRow, chosen: ChooseToken) -> GitToken:
    token = chosen.token.get_secret_value().strip()
    if not _VISIBLE.fullmatch(token):
        raise InvalidInput("the token has spaces or other characters no token has; send it alone")
    if chosen.host is not None:
        host = parse(f"https://{chosen.host}/x").place
    elif row.source is not None and row.source["kind"] == "git":
        address = parse(GitSource.model_validate(row.source).url)
        if address.scheme == "ssh":
            raise InvalidInput("the app's repository is over SSH, where a token is of no use; use https://")
        host = address.place
    else:
        raise InvalidInput("name the Git server's host: the app has no repository that says it")
    user = chosen.user or ("x-token-auth" if host == "bitbucket.org" else "oauth2")
    return GitToken(host=host, user=user, token=token)


def _key(row: WorkloadRow, chosen: ChooseKey, present: DeployKey | None) -> DeployKey:
    place = None
    if row.source is not None and row.source["kind"] == "git":
        address = parse(GitSource.model_validate(row.source).url)
        place = address.place if address.scheme == "ssh" else None
    if chosen.private_key is not None:
        private_key = deploy_keys.brought(chosen.private_key.get_secret_value())
    else:
        private_key = present.private_key if present is not None else deploy_keys.new_key()
    host_keys = tuple(deploy_keys.host_key(line, place) for line in chosen.host_keys)
    if "host_keys" not in chosen.model_fields_set and present is not None:
        host_keys = present.host_keys
    return DeployKey(private_key=private_key, host_keys=host_keys)


async def _present(desk: Desk, tx: Tx, row: WorkloadRow) -> DeployKey | None:
    found = await tx.get(CredentialRow, (row.id, "git"))
    if found is None:
        return None
    known = read_git(_seal(desk).open(found.sealed, context(row.id, "git")))
    return known if isinstance(known, DeployKey) else None


async def _keep(
    desk: Desk,
    tx: Tx,
    row: WorkloadRow,
    credential: GitToken | DeployKey | RegistryLogin,
    shown: Mapping[str, object],
) -> CredentialView:
    purpose: Purpose = "registry" if isinstance(credential, RegistryLogin) else "git"
    closed = _seal(desk).close(credential.model_dump_json(), context(row.id, purpose))
    found = await tx.get(CredentialRow, (row.id, purpose))
    if found is None:
        found = CredentialRow(workload=row.id, purpose=purpose, organization=row.organization)
        tx.add(found)
    found.sealed, found.shown = closed, {"kind": credential.kind, **shown}
    found.made_at = desk.clock.now()
    return _view(found)


def _view(row: CredentialRow) -> CredentialView:
    return CredentialView.model_validate({"purpose": row.purpose, "made_at": row.made_at, **row.shown})


def _seal(desk: Desk) -> Seal:
    return Seal(desk.seal_key("credentials"))
