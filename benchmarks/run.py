"""All side-by-side measurements, one after the other, into benchmarks/results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import knn
import latency
import memory
import quality
import scaling
import step

_RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    """Each measurement is kept as soon as it is made."""
    results: dict[str, Any] = {}
    for module in (step, memory, scaling, latency, knn, quality):
        results |= module.measure()
        _RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
