"""The API's models of what instances and nodes say."""

from contracts.lines import LineStream
from contracts.model import Model, Moment


class LineView(Model):
    # Counts within the app, or the node, without a gap.
    sequence: int
    at: Moment
    instance: str
    # Its place, such as web.1.
    process: str
    stream: LineStream
    text: str


class LinePage(Model):
    lines: tuple[LineView, ...]
    # What comes later is behind `after` this, what came earlier `before` that; none: there is no more of it.
    next: int
    earlier: int | None
