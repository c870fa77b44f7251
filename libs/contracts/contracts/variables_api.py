"""The models of variables in the REST API: what a customer says of them, and what he is shown."""

from contracts.model import Model, Strict
from contracts.variables import Scope


class ChooseVariable(Strict):
    """What is absent stays; a new one is a secret of the instances."""

    # A value is taken as it is, spaces and all.
    model_config = Strict.model_config | {"str_strip_whitespace": False}
    value: str | None = None
    scope: Scope | None = None
    secret: bool | None = None


class VariableView(Model):
    """`value` is a mask where it is secret and was not asked for."""

    name: str
    value: str
    scope: Scope
    secret: bool


class VariableList(Model):
    variables: tuple[VariableView, ...]
