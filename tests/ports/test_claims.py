"""What images, builds and other people's containers say of themselves at the engine, and what comes of it."""

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from contracts.ids import new_id
from docker.errors import NotFound
from embedded.leftovers import remove_firewall
from node_agent.commands import run
from node_agent.engine import EngineEvent, Instance
from node_agent.labels import ADDRESS, labels_of

from tests.harness import eventually
from tests.ports.docker_image import IMAGE
from tests.ports.engines import PREFIX, DockerHands, blueprint

Stranger = Callable[..., str]


@pytest.fixture
def stranger(docker: DockerHands) -> Iterator[Stranger]:
    """A container that is nobody's instance."""
    made = []

    def start(labels: dict[str, str], network: str = "bridge") -> str:
        client = docker.client
        container: str = client.create_container(
            IMAGE,
            ["sleep", "600"],
            labels=labels,
            host_config=client.create_host_config(network_mode=network),
        )["Id"]
        made.append(container)
        client.start(container)
        return container

    yield start
    for container in made:
        with suppress(NotFound):
            docker.client.remove_container(container, force=True)


async def started(docker: DockerHands, **changes: object) -> Instance:
    made = await docker.engine.create(blueprint(docker, **changes))
    await docker.engine.start(made.identity.instance)
    return made


async def test_an_image_that_calls_itself_a_job_is_an_instance_like_any_other(docker: DockerHands) -> None:
    tag = f"{PREFIX}:claims"
    text = f"FROM {IMAGE}\nLABEL berth.job=x berth.deployment=y berth.address=z\n"
    list(docker.client.build(fileobj=io.BytesIO(text.encode()), tag=tag, rm=True, forcerm=True))
    try:
        plan = blueprint(docker, image=tag)
        plan = replace(plan, identity=replace(plan.identity, deployment=None))
        made = await docker.engine.create(plan)
        await docker.engine.start(made.identity.instance)
        [found] = await docker.engine.instances(plan.identity.workload)
        assert found.identity == plan.identity
        assert found.address == made.address
        assert plan.identity.workload not in {job.identity.workload for job in await docker.engine.jobs()}
        await docker.engine.remove(made.identity.instance)
    finally:
        docker.client.remove_image(tag, force=True)


async def test_a_step_of_a_build_is_not_believed(docker: DockerHands, stranger: Stranger) -> None:
    told: list[EngineEvent] = []

    async def listen() -> None:
        async for event in docker.engine.events():
            if event is not None:
                told.append(event)

    listening = asyncio.create_task(listen())
    try:
        made = await started(docker)
        own = docker.inspect(made.identity.instance)["Config"]["Labels"]
        node = {key: own[key] for key in ("berth.prefix", "berth.node")}
        # Engines give the container of a step the labels its Dockerfile says.
        stranger({**node, ADDRESS: "x"})
        stranger({**node, **labels_of(replace(made.identity, instance=new_id("ins"))), ADDRESS: made.address})
        stranger({**own, ADDRESS: "10.0.0.1"})
        [found] = await docker.engine.instances(made.identity.workload)
        assert found.address == made.address
        other = await started(docker, organization=made.identity.organization)
        assert other.address != made.address
        await eventually(lambda: _both(told, made, other), what="the events of both")
        assert {event.instance for event in told} == {
            made.identity.instance,
            other.identity.instance,
        }
        for one in (made, other):
            await docker.engine.remove(one.identity.instance)
    finally:
        listening.cancel()
        await asyncio.wait([listening])


async def _both(told: list[EngineEvent], *instances: Instance) -> bool:
    return {one.identity.instance for one in instances} <= {event.instance for event in told}


async def test_one_whose_network_is_out_of_order_leaves_the_others_in_theirs(
    docker: DockerHands, stranger: Stranger
) -> None:
    made, other = await started(docker), await started(docker)
    name = made.identity.instance
    [network] = docker.inspect(name)["NetworkSettings"]["Networks"]
    docker.client.disconnect_container_from_network(f"{PREFIX}-{name}", network, force=True)
    own = stranger({})
    docker.client.connect_container_to_network(own, network, ipv4_address=made.address)
    [network] = docker.inspect(other.identity.instance)["NetworkSettings"]["Networks"]
    docker.client.disconnect_container_from_network(
        f"{PREFIX}-{other.identity.instance}", network, force=True
    )
    remove_firewall((f"{PREFIX.upper()}-",))
    await docker.engine.reassert()
    assert list(docker.inspect(other.identity.instance)["NetworkSettings"]["Networks"]) == [network]
    rules = await asyncio.to_thread(run, "iptables-save")
    assert f":{PREFIX.upper()}-FORWARD" in rules, "everybody is kept apart"
    docker.client.remove_container(own, force=True)
    await docker.engine.reassert()
    assert docker.inspect(name)["NetworkSettings"]["Networks"], "and it is tried again"
    for one in (made, other):
        await docker.engine.remove(one.identity.instance)


async def test_somebody_else_in_an_organizations_network_stops_nothing(
    docker: DockerHands, stranger: Stranger
) -> None:
    made = await started(docker)
    name = made.identity.instance
    [network] = docker.inspect(name)["NetworkSettings"]["Networks"]
    own = stranger({}, network)
    await docker.engine.remove(name)
    await docker.engine.reassert()
    assert docker.client.networks(names=[network]), "somebody is in it"
    await docker.engine.remove((await started(docker)).identity.instance)
    docker.client.remove_container(own, force=True)
    await docker.engine.reassert()
    assert not docker.client.networks(names=[network])
