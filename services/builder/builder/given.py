"""What a build is given of the app's variables, and which of them nobody may read in its log.

Only variables of the scope `build` or `both` reach a build. Those that are no secrets may become arguments of
a Dockerfile, which an image's history keeps; secrets never do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from contracts import variables
from contracts.errors import InvalidInput, ProviderFailed
from contracts.events import DeploymentRequested
from contracts.variables import Variable
from pydantic import ValidationError
from runtime.seal import Seal

from builder import dockerfile
from builder.masking import Mask
from builder.recipes.case import Recipe, Source

_ARGUMENT = re.compile(r"^\s*ARG\s+(.+)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Given:
    variables: tuple[Variable, ...]

    def mask(self) -> Mask:
        """All secrets, those of the instances too: a source may hold them."""
        return Mask(variable.value for variable in self.variables if variable.secret)

    @property
    def plain(self) -> Mapping[str, str]:
        return {v.name: v.value for v in self.variables if v.at_build and not v.secret}

    @property
    def secrets(self) -> Mapping[str, str]:
        return {v.name: v.value for v in self.variables if v.at_build and v.secret}

    def into(self, recipe: Recipe, source: Source) -> Recipe:
        """The customer's own Dockerfile gets as arguments what it declares; the images it then builds on are
        checked as those it names by itself."""
        text = source.texts.get(recipe.dockerfile)
        if recipe.name != "dockerfile" or text is None:
            return recipe
        declared = {word.partition("=")[0] for line in _ARGUMENT.findall(text) for word in line.split()}
        plain = {name: value for name, value in self.plain.items() if name in declared}
        arguments = plain | dict(recipe.arguments)
        return replace(recipe, arguments=arguments, bases=dockerfile.bases(text, arguments))


def opened(request: DeploymentRequested, key: str) -> Given:
    """`key`: what the gateway seals variables with."""
    if request.variables is None:
        return Given(())
    try:
        text = Seal(key).open(request.variables, variables.for_builder(request.workload))
        return Given(variables.read_all(text))
    except (InvalidInput, ValidationError) as error:
        raise ProviderFailed("the app's variables cannot be unsealed by this builder") from error
