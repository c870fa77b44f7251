"""What can never be handled, or never be sent: kept whole beside its error, with an alert, until an operator
replays or drops it (`berth parked`)."""

from contracts.events import AlertRaised

KEEP = (
    "insert into parked (event_id, subject, payload, headers, error, tries) "
    "values (%s, %s, %s, %s::jsonb, %s, %s) on conflict do nothing"
)


def alert(service: str, subject: str, event_id: str, error: str) -> AlertRaised:
    return AlertRaised(
        id=f"park-{service}-{event_id}"[:80],
        service=service,
        severity="critical",
        title="A message was parked",
        details={"subject": subject, "event": event_id, "error": error[:500]},
    )
