"""Wires billing: what it handles, answers and repeats."""

import functools

from contracts.events import (
    AlertRaised,
    BillingTick,
    CreditGranted,
    InstanceStarted,
    InstanceStopped,
    NodeRemoved,
    WalletChanged,
)
from contracts.queries import StatementOf, WalletOf
from runtime.runtime import Runtime
from runtime.service import Loop, Service, many

from billing import ledger
from billing.audit import Audit
from billing.charging import Charging, close
from billing.metering import Metering
from billing.settings import BillingSettings
from billing.silence import Silence
from billing.wallet import Wallets


def create(runtime: Runtime) -> Service:
    settings = BillingSettings()
    charging = Charging(runtime, runtime.settings.currency, settings.period_seconds)
    charge = Loop("charge", charging.charge, every=5.0)
    metering = Metering(runtime, runtime.settings.currency, charge.nudge)
    wallets = Wallets(runtime, runtime.settings.currency)
    return Service(
        name="billing",
        handles={
            InstanceStarted: many(metering.started),
            InstanceStopped: many(metering.stopped),
            NodeRemoved: metering.node_removed,
            CreditGranted: ledger.credit,
            BillingTick: functools.partial(close, charge.nudge),
        },
        publishes=(BillingTick, WalletChanged, AlertRaised),
        answers={WalletOf: wallets.wallet, StatementOf: wallets.statement},
        loops=[
            charge,
            Loop("periods", charging.end_periods, every=min(15.0, settings.period_seconds / 4)),
            Loop("silence", Silence(runtime, charge.nudge).look, every=30.0),
            Loop("audit", Audit(runtime).check, every=60.0),
        ],
    )
