"""What Docker's SDK raises, in the words of the port. The SDK is large, and loaded by its users alone."""

import contextlib
from collections.abc import Iterator
from typing import Any

from contracts.errors import NotFound, ProviderFailed, Unavailable


@contextlib.contextmanager
def translated() -> Iterator[None]:
    from docker.errors import APIError, DockerException
    from docker.errors import NotFound as DockerNotFound
    from requests.exceptions import RequestException

    try:
        yield
    except DockerNotFound as error:
        raise NotFound(_words(error)) from error
    except APIError as error:
        raise ProviderFailed(f"the container engine refused: {_words(error)}") from error
    except (DockerException, RequestException) as error:
        raise Unavailable(f"the container engine does not answer: {error}") from error


def _words(error: Any) -> str:
    return str(error.explanation or error)
