"""What a build is given of the app's variables, and which of them nobody may read in its log.

Only variables of the scope `build` or `both` reach a build. Those that are no secrets may become arguments of
a Dockerfile, which an image's history keeps; secrets never do: they are handed to the steps.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from contracts import variables
from contracts.errors import InvalidInput, ProviderFailed
from contracts.events import DeploymentRequested
from contracts.variables import Variable
from pydantic import ValidationError
from runtime.seal import Seal

from builder import dockerfile, handing
from builder.masking import Mask
from builder.recipes.case import Recipe, Source

_ARGUMENT = re.compile(r"^\s*ARG\s+(.+)$", re.IGNORECASE | re.MULTILINE)

# How a rendered step begins, and the file that runs it with the secrets.
_SHELL, _WITH = 'RUN ["/bin/sh", "-c", ', "with-secrets"


@dataclass(frozen=True, slots=True)
class Given:
    variables: tuple[Variable, ...]
    # The same for the same secrets of the same app, and telling nothing about them.
    digest: str = ""

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
        checked as those it names by itself. A rendered one tells its first stage everything."""
        if recipe.dockerfile in recipe.added:
            return self._rendered(recipe)
        text = source.texts.get(recipe.dockerfile)
        if recipe.by is not None or text is None:
            return recipe
        declared = {word.partition("=")[0] for line in _ARGUMENT.findall(text) for word in line.split()}
        plain = {name: value for name, value in self.plain.items() if name in declared}
        arguments = plain | dict(recipe.arguments)
        return replace(recipe, arguments=arguments, bases=dockerfile.bases(text, arguments))

    def _rendered(self, recipe: Recipe) -> Recipe:
        if not self.plain and not self.secrets:
            return recipe
        begin, work, rest = recipe.added[recipe.dockerfile].decode().partition("\nWORKDIR /app\n")
        build, second, run = rest.partition("\nFROM ")
        told = [f"ARG {name}" for name in self.plain]
        added = dict(recipe.added)
        if self.secrets:
            # Other secrets are other steps: what was made with the old ones is not taken from the cache.
            told += [f"ARG BERTH_SECRETS={self.digest}", f"COPY {_WITH} /run/berth/{_WITH}"]
            build = build.replace(_SHELL, f'RUN ["/bin/sh", "/run/berth/{_WITH}", ')
            added[_WITH] = handing.SCRIPT
        added[recipe.dockerfile] = "".join(
            [begin, work, *(f"{line}\n" for line in told), build, second, run]
        ).encode()
        return replace(recipe, added=added, arguments=self.plain, handed=self.secrets)


def opened(request: DeploymentRequested, key: str) -> Given:
    """`key`: what the gateway seals variables with."""
    if request.variables is None:
        return Given(())
    try:
        seal, context = Seal(key), variables.for_builder(request.workload)
        given = Given(variables.read_all(seal.open(request.variables, context)))
        return replace(given, digest=seal.digest(json.dumps(given.secrets, sort_keys=True), context))
    except (InvalidInput, ValidationError) as error:
        raise ProviderFailed("the app's variables cannot be unsealed by this builder") from error
