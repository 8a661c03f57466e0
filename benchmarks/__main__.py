"""
Speed, measured: what ``make bench`` runs.

    python -m benchmarks [--all] [--case NAME]… [--rounds N] [--minutes N] [--json FILE]

Cases: S1, S2-1, S2-100, S2-500, S2-1000, N1, N1-16, TTFT, RSS, START; BREADTH (dialects, stores,
hosts); L1 to L7 and L9 (RELIABILITY.md, section 6); COLD (a Lambda's cold start).
"""

import argparse
import time
from pathlib import Path

from benchmarks import cases, lab, loads, machine, publish, report

RARE = frozenset({"S2-1", "S2-1000", "L2", "L4", "L5", "L9"})
"""What takes long, or needs much of the machine: with ``--all``, or by name."""

NAMES = frozenset(
    {*cases.CASES, "TTFT", "RSS", "START", "BREADTH", "COLD"}
    | {f"L{number}" for number in (1, 2, 3, 4, 5, 6, 7, 9)}
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every case there is, not a choice")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this")
    parser.add_argument("--rounds", type=int, help="of each case, instead of its own number")
    parser.add_argument("--json", type=Path, default=report.LATEST, help="where the result goes")
    parser.add_argument(
        "--minutes", type=float, default=0.5, help="of the soak, L5 (15 is its own)"
    )
    parser.add_argument("--publish", action="store_true", help="in the documentation too")
    options = parser.parse_args()
    unknown = set(options.case) - NAMES
    if unknown:
        parser.error(
            f"no case is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(NAMES))}"
        )

    def wanted(name: str) -> bool:
        if options.case:
            return name in options.case
        return options.all or name not in RARE

    began = time.time()
    results = cases.Results()
    cores = machine.cores()
    if not cores.apart:
        results.note(
            "There is one core: what is measured and the load share it; no latency counts."
        )
    with lab.opened() as opened:
        print("serve and the bare spikes", flush=True)
        cases.headline(opened, results, wanted, options.rounds)
        if wanted("BREADTH"):
            print("dialects, stores, hosts", flush=True)
            cases.breadth(opened, results, everything=options.all)
        if any(wanted(name) for name in (*loads.NAMES,)):
            print("loads", flush=True)
            loads.run(opened, results, wanted, everything=options.all, minutes=options.minutes)
    said = report.document(results, began)
    report.write(said, options.json)
    print(f"\n{report.table(said)}\n")
    for line in report.ratios(said):
        print(line)
    if options.publish:
        publish.publish(said)
        print(f"\npublished: {publish.REFERENCE}, {publish.PAGE}")
    print(f"\n{options.json}, after {said['seconds']} s")


if __name__ == "__main__":
    main()
