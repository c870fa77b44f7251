"""What instances say reaches the platform once, whatever is lost on the way."""

from dataclasses import replace

import pytest
from contracts.errors import ProviderFailed, Unavailable
from contracts.ids import new_id
from contracts.lines import AGENT, KeepLines, Kept, Line, unpacked
from node_agent.engine import Identity
from node_agent.lines import Lines, OwnLog
from runtime.telemetry import Recent

from tests.harness import ShiftedClock
from tests.ports.engines import FakeHands, blueprint


class Platform:
    """Keeps pieces as the gateway does, and can fail before and after."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.lines: dict[str, list[Line]] = {}
        self.refuses: set[str] = set()
        self.away = False
        self.broken = False
        # So many answers are lost on their way.
        self.losing = 0
        self.asked = 0
        self.sizes: list[int] = []

    async def ask(self, question: KeepLines) -> Kept:
        self.asked += 1
        self.sizes.append(len(question.model_dump_json()))
        if self.away:
            raise Unavailable("gateway does not answer; try again")
        if self.broken:
            raise ProviderFailed("gateway failed; its log says why")
        for piece in question.pieces:
            if piece.instance in self.refuses or not piece.lines:
                continue
            if self.kept.get(piece.instance, piece.after) == piece.after:
                self.kept[piece.instance] = piece.upto
                self.lines.setdefault(piece.instance, []).extend(unpacked(piece.body))
        if self.losing:
            self.losing -= 1
            raise Unavailable("gateway does not answer; try again")
        return Kept(
            kept={p.instance: self.kept.get(p.instance, 0) for p in question.pieces},
            refused=tuple(p.instance for p in question.pieces if p.instance in self.refuses),
        )

    def said(self, instance: str) -> list[str]:
        return [line.text for line in self.lines.get(instance, ())]


class Stage:
    def __init__(self) -> None:
        self.hands = FakeHands()
        self.engine = self.hands.engine
        self.platform = Platform()
        self.clock = ShiftedClock()
        self.recent = Recent()
        self.lines = self.agent()

    def agent(self) -> Lines:
        """A life of the agent: it knows nothing of the one before."""
        return Lines("n1", self.engine, OwnLog(self.recent), self.platform.ask, self.clock)

    async def started(self) -> Identity:
        made = blueprint(self.hands, command="run")
        await self.engine.create(made)
        await self.engine.start(made.identity.instance)
        return made.identity

    async def rounds(self, count: int = 3) -> None:
        for _ in range(count):
            self.clock.advance(20)
            await self.lines.work()


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_lines_are_handed_over_as_they_come(stage: Stage) -> None:
    one, two = await stage.started(), await stage.started()
    for identity in (one, two):
        stage.lines.follow(identity, new=True)
    await stage.rounds()
    stage.engine.say(one.instance, "hello")
    await stage.rounds()
    assert stage.platform.said(one.instance) == [f"starting {one.instance}", "hello"]
    assert stage.platform.said(two.instance) == [f"starting {two.instance}"]
    # Where nothing is said nobody is asked.
    asked = stage.platform.asked
    await stage.rounds()
    assert stage.platform.asked == asked


async def test_a_lost_answer_doubles_nothing_and_a_platform_that_is_away_loses_nothing(stage: Stage) -> None:
    one = await stage.started()
    stage.lines.follow(one, new=True)
    stage.platform.losing = 2
    for number in range(6):
        stage.engine.say(one.instance, f"line {number}")
        stage.platform.away = number in (2, 3)
        await stage.rounds(1)
    await stage.rounds()
    assert stage.platform.said(one.instance)[1:] == [f"line {number}" for number in range(6)]


async def test_a_new_agent_goes_on_where_the_platform_is(stage: Stage) -> None:
    one = await stage.started()
    stage.lines.follow(one, new=True)
    await stage.rounds()
    stage.engine.say(one.instance, "while nobody listened")
    stage.lines.close()
    stage.lines = stage.agent()
    stage.lines.follow(one)
    await stage.rounds()
    assert stage.platform.said(one.instance) == [f"starting {one.instance}", "while nobody listened"]


async def test_what_the_platform_has_lost_is_handed_over_again(stage: Stage) -> None:
    one = await stage.started()
    stage.lines.follow(one, new=True)
    await stage.rounds()
    before = stage.platform.kept[one.instance]
    stage.engine.say(one.instance, "lost with the database")
    await stage.rounds()
    # It comes back as it was a moment ago.
    stage.platform.kept[one.instance] = before
    stage.platform.lines[one.instance].pop()
    stage.engine.say(one.instance, "afterwards")
    await stage.rounds()
    expected = [f"starting {one.instance}", "lost with the database", "afterwards"]
    assert stage.platform.said(one.instance) == expected


async def test_last_words_are_kept_though_the_instance_is_gone(stage: Stage) -> None:
    one = await stage.started()
    stage.lines.follow(one, new=True)
    stage.platform.away = True
    await stage.rounds()
    stage.engine.say(one.instance, "goodbye")
    await stage.lines.finish(one.instance)
    await stage.engine.remove(one.instance)
    await stage.rounds()
    stage.platform.away = False
    await stage.rounds()
    assert stage.platform.said(one.instance) == [f"starting {one.instance}", "goodbye"]
    # And nothing is left of it here.
    asked = stage.platform.asked
    await stage.rounds()
    assert stage.platform.asked == asked


async def test_one_that_somebody_removed_is_followed_no_more(stage: Stage) -> None:
    one, two = await stage.started(), await stage.started()
    for identity in (one, two):
        stage.lines.follow(identity, new=True)
    await stage.rounds()
    stage.engine.say(one.instance, "goodbye")
    await stage.engine.vanish(one.instance)
    assert stage.lines.followed() == {one.instance, two.instance}
    await stage.lines.finish(one.instance)
    assert stage.lines.followed() == {two.instance}
    await stage.rounds()
    assert stage.platform.said(one.instance)[-1] == "goodbye"


async def test_a_platform_that_fails_is_asked_again_later(stage: Stage) -> None:
    one = await stage.started()
    stage.lines.follow(one, new=True)
    stage.platform.broken = True
    await stage.rounds()
    asked = stage.platform.asked
    await stage.lines.work()
    assert stage.platform.asked == asked
    stage.platform.broken = False
    await stage.rounds()
    assert stage.platform.said(one.instance) == [f"starting {one.instance}"]


async def test_who_is_refused_is_followed_no_more_and_holds_up_nobody(stage: Stage) -> None:
    one, two = await stage.started(), await stage.started()
    stage.platform.refuses = {one.instance}
    for identity in (one, two):
        stage.lines.follow(identity)
    await stage.rounds()
    stage.engine.say(one.instance, "more")
    stage.engine.say(two.instance, "more")
    await stage.rounds()
    assert stage.platform.said(one.instance) == []
    assert stage.platform.said(two.instance)[-1] == "more"


async def test_one_that_is_gone_already_holds_up_nobody(stage: Stage) -> None:
    one = await stage.started()
    gone = replace(one, instance=new_id("ins"))
    stage.lines.follow(gone)
    stage.lines.follow(one)
    await stage.rounds()
    assert stage.platform.said(one.instance) == [f"starting {one.instance}"]


async def test_much_at_once_goes_in_messages_the_bus_takes(stage: Stage) -> None:
    one = await stage.started()
    stage.lines.follow(one, new=True)
    # Such as no packing makes smaller.
    wanted = [f"{number} {new_id('ins')}{new_id('ins')}{new_id('ins')}" for number in range(8_000)]
    for text in wanted:
        stage.engine.say(one.instance, text)
    await stage.rounds(12)
    assert stage.platform.said(one.instance)[1:] == wanted
    assert stage.platform.asked > 2
    assert max(stage.platform.sizes) < 900_000


async def test_the_agent_hands_over_its_own_log(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    await stage.rounds()
    stage.recent.write('{"event": "something"}')
    stage.recent.write("\n")
    await stage.rounds()
    assert stage.platform.said(AGENT) == ['{"event": "something"}']
    assert capsys.readouterr().err == '{"event": "something"}\n'
