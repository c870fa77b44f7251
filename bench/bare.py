"""What the platform is made of, bare: the programs a baseline starts, each in a process of its own.

`python -m bench.bare fastapi DATABASE PORT`, `python -m bench.bare faststream NATS USER PASSWORD`.
"""

import asyncio
import sys

DURABLES = 6


async def fastapi(database: str, port: int) -> None:
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
    await uvicorn.Server(uvicorn.Config(app, port=port, log_config=None)).serve()


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


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "fastapi":
        asyncio.run(fastapi(arguments[0], int(arguments[1])))
    else:
        asyncio.run(faststream(*arguments))
