"""Writes the golden files that are missing; never touches one that exists."""

import json
from pathlib import Path

from tests.contracts.samples import SAMPLES
from tests.contracts.test_golden import GOLDEN, name


def main() -> None:
    for sample in SAMPLES:
        path: Path = GOLDEN / f"{name(sample)}.json"
        if not path.exists():
            path.write_text(json.dumps(json.loads(sample.model_dump_json()), indent=2) + "\n")


if __name__ == "__main__":
    main()
