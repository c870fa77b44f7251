"""What the platform is made of, bare: the programs a baseline starts, each in a process of its own.

`python -m bench.bare PROGRAM ARGUMENT …`, where a program is one of the functions below.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

DURABLES = 6


async def fastapi(database: str, port: str) -> None:
    """One FastAPI process with SQLAlchemy and its pool of connections, all of them open."""
    import uvicorn
    from fastapi import FastAPI
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    app = FastAPI()
    engine = create_async_engine(database, pool_size=8, max_overflow=0)

    @app.get("/")
    async def answer() -> dict[str, int]:
        async with engine.connect() as connection:
            return {"one": (await connection.execute(text("select 1"))).scalar_one()}

    async def one_query() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select 1, pg_sleep(0.1)"))

    await asyncio.gather(*(one_query() for _ in range(8)))
    await uvicorn.Server(uvicorn.Config(app, port=int(port), log_config=None)).serve()


async def apps(database: str, organization: str, port: str) -> None:
    """One FastAPI route that answers with what one statement of the API finds, through psycopg's own pool."""
    import psycopg_pool
    import uvicorn
    from fastapi import FastAPI, Response
    from gateway.apps import LIST

    app = FastAPI()
    pool = psycopg_pool.AsyncConnectionPool(
        database, min_size=8, max_size=8, open=False, kwargs={"autocommit": True}
    )

    @app.get("/api/paas/apps")
    async def listed() -> Response:
        async with pool.connection() as connection:
            cursor = await connection.execute(LIST, (organization, None, None), prepare=True)
            row = await cursor.fetchone()
        assert row is not None
        return Response(row[0], media_type="application/json")

    await pool.open(wait=True)
    # As the platform serves its own API.
    config = uvicorn.Config(
        app, port=int(port), log_config=None, access_log=False, lifespan="off", server_header=False
    )
    await uvicorn.Server(config).serve()


async def faststream(bus: str, user: str, password: str) -> None:
    """One FastStream worker with durable batch subscribers, and SQLAlchemy for what handlers would do."""
    from faststream.nats import JStream, NatsBroker, PullSub
    from faststream.nats.security import NatsUserPassword
    from sqlalchemy.ext.asyncio import create_async_engine

    create_async_engine("postgresql+psycopg://nobody@127.0.0.1/nothing")
    broker = NatsBroker(bus, security=NatsUserPassword(username=user, password=password), logger=None)
    stream = JStream("BARE", subjects=["bare.>"])

    async def handle(batch: list[dict[str, str]]) -> None:
        pass

    for number in range(DURABLES):
        pull = PullSub(batch_size=100, timeout=5, batch=True)
        broker.subscriber(f"bare.{number}", stream=stream, durable=f"bare-{number}", pull_sub=pull)(handle)
    await broker.start()
    await asyncio.Event().wait()


PROGRAMS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "fastapi": fastapi,
    "apps": apps,
    "faststream": faststream,
}

if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    uvloop.run(PROGRAMS[program](*arguments))
