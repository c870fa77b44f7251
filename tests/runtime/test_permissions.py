"""What a node may say and hear is of that node alone (I5); of copies, in its own name only."""

from contracts.copies import blocks_subject
from runtime.permissions import node_user


def allowed(patterns: list[str], subject: str) -> bool:
    return any(_fits(pattern.split("."), subject.split(".")) for pattern in patterns)


def _fits(pattern: list[str], tokens: list[str]) -> bool:
    for i, token in enumerate(pattern):
        if token == ">":
            return len(tokens) > i
        if i >= len(tokens) or token not in ("*", tokens[i]):
            return False
    return len(pattern) == len(tokens)


def test_a_node_asks_for_blocks_in_its_own_name_and_answers_for_itself() -> None:
    publish, subscribe = node_user("n2")
    assert allowed(publish, blocks_subject("n1", "n2"))
    assert allowed(subscribe, blocks_subject("n2", "n1"))
    for subject in (blocks_subject("n1", "n3"), blocks_subject("n2", "n3"), blocks_subject("n1", "n1")):
        assert not allowed(publish, subject), subject
    for subject in (blocks_subject("n1", "n2"), blocks_subject("n1", "n3")):
        assert not allowed(subscribe, subject), subject


def test_a_node_reads_its_own_orders_and_says_its_own_state() -> None:
    publish, subscribe = node_user("n2")
    for bucket in ("desired", "jobs", "copies"):
        create = f"$JS.API.CONSUMER.CREATE.KV_{bucket}.some-name.$KV.{bucket}"
        assert allowed(publish, f"{create}.n2.>")
        for stranger in (f"{create}.n1.>", f"{create}.>", f"{create}.n1.app"):
            assert not allowed(publish, stranger), stranger
        assert not allowed(publish, f"$KV.{bucket}.n2.app")
    assert allowed(publish, "copy.state.n2")
    assert not allowed(publish, "copy.state.n1")
    assert not allowed(subscribe, "_INBOX_node-n1.x")
    assert not allowed(subscribe, "copy.state.n2")
