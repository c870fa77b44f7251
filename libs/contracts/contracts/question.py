"""What a question to the owner of some data is: `contracts.queries` has them all."""

from typing import ClassVar, Generic, TypeVar

from contracts.ids import NodeName
from contracts.model import Model

A = TypeVar("A", bound=Model)


class Query(Model, Generic[A]):
    owner: ClassVar[str]
    what: ClassVar[str]
    answer: ClassVar[type[Model]]

    @classmethod
    def subject(cls) -> str:
        return f"query.{cls.owner}.{cls.what}"

    @classmethod
    def heard_at(cls) -> str:
        return cls.subject()

    def asked_at(self) -> str:
        return self.subject()


class NodeQuery(Query[A], Generic[A]):
    """One that a node asks: under its own name, which nobody else can."""

    node: NodeName

    @classmethod
    def heard_at(cls) -> str:
        return f"{cls.subject()}.*"

    def asked_at(self) -> str:
        return f"{self.subject()}.{self.node}"
