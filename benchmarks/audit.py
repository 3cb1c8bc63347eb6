"""Audits the private mechanism, as it is and with planted mistakes: lower bounds on epsilon beside the claims.

    python benchmarks/audit.py                      # one plan, one method
    python benchmarks/audit.py --table > results/audit.md

Without --table it prints one verdict and exits with 1 when the claim is exceeded.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.broken_mechanisms import BROKEN
from ldm.errors import UserError
from ldm.numbers import rounded_down, rounded_up
from ldm.privacy.audit import METHODS, AuditResult, Mechanism, audit, audit_pairs, audit_sensitivity, judge, observe
from ldm.privacy.plan import PrivacyPlan

EPSILONS = (1.0, 4.0, 10.0)
DELTA = 1e-5
# q, steps and number of data sets for pairs; a large epsilon needs small batches, many steps and many data sets
PAIRS = {1.0: (0.02, 150, 2000), 4.0: (0.01, 1000, 3000), 10.0: (0.02, 150, 2000)}
SHUFFLED = "shuffled epochs instead of Poisson draws"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 1 when a claim is exceeded, 2 for bad input."""
    flags = _parser().parse_args(arguments)
    try:
        if flags.table:
            print(table(flags))
            return 0
        started = time.perf_counter()
        result = one_audit(flags)
        print(f"{result.verdict()}  [{time.perf_counter() - started:.1f} s]")
        return int(result.exceeded)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the whole page of results/audit.md")
    parser.add_argument("--epsilon", type=float, default=1.0, help="epsilon to calibrate the plan for")
    parser.add_argument("--delta", type=float, default=DELTA)
    parser.add_argument("--rate", type=float, default=0.1, help="sampling rate q")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--noise_multiplicity", type=int, default=4, help="noise draws a record, K")
    parser.add_argument("--canaries", type=int, default=2000)
    parser.add_argument("--method", choices=(*METHODS, "pairs"), default="gaussian")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--broken", choices=sorted(BROKEN), help="plant this mistake")
    return parser


def planned(
    flags: argparse.Namespace, epsilon: float, rate: float | None = None, steps: int | None = None
) -> PrivacyPlan:
    """The plan for ``epsilon``; batch size and C play no part in what is told apart."""
    return PrivacyPlan.calibrate(
        target_epsilon=epsilon,
        delta=flags.delta,
        sample_rate=rate or flags.rate,
        steps=steps or flags.steps,
        batch_size=100,
        max_grad_norm=0.5,
        noise_multiplicity=flags.noise_multiplicity,
    )


def one_audit(flags: argparse.Namespace) -> AuditResult:
    """The audit that the flags describe, on the two-layer network."""
    mechanism = BROKEN[flags.broken] if flags.broken else Mechanism()
    plan = planned(flags, flags.epsilon)
    if flags.method == "pairs":
        return audit_pairs(plan, pairs=flags.canaries, confidence=flags.confidence, mechanism=mechanism)
    net, loss, records = two_layers(32)
    return audit(
        plan,
        model=net,
        loss=loss,
        records=records,
        canaries=flags.canaries,
        method=flags.method,
        confidence=flags.confidence,
        mechanism=mechanism,
    )


def two_layers(count: int) -> tuple[nn.Module, object, dict[str, Tensor]]:
    """A network of two layers, its squared error and ``count`` made-up records."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

    def loss(rows: dict[str, Tensor]) -> Tensor:
        return (net(rows["x"]) - rows["y"]).square().sum(1)

    records = {"x": torch.randn(count, 8, generator=generator), "y": torch.randn(count, 4, generator=generator)}
    return net, loss, records


def table(flags: argparse.Namespace) -> str:
    """The page: the mechanism as it is, its sensitivity, and every planted mistake."""
    lines = [
        "# What an audit finds",
        "",
        "Written by `python benchmarks/audit.py --table`, which takes some minutes on two cores. A bound holds with",
        f"{flags.confidence:.0%} confidence. `gaussian`, `f_dp` and `one_run` are one run of a plan with canaries",
        f"beside the 32 records of a two-layer network: q = {flags.rate}, {flags.steps} steps, "
        f"K = {flags.noise_multiplicity}, δ = {flags.delta:g}. `pairs` is",
        "many small data sets of 1/q records; its bound cannot exceed about the logarithm of a fifteenth of their",
        "number, so it says nothing at ε = 10. What the methods assume and prove is in `ldm/privacy/audit/`. Draws and",
        "noise are secret: another run gives other numbers, above all where `pairs` finds shuffling by a small margin.",
        "",
        "## The mechanism as it is",
        "",
        "| claimed ε | method | canaries | lower bound | bound / claim | seconds |",
        "|--|--|--|--|--|--|",
    ]
    for epsilon in EPSILONS:
        lines += correct_lines(flags, epsilon)
    lines += [
        "",
        "## With a planted mistake",
        "",
        "| mistake | claimed ε | method | lower bound | found |",
        "|--|--|--|--|--|",
    ]
    for name, mechanism in BROKEN.items():
        for epsilon in EPSILONS:
            result = broken_result(flags, name, mechanism, epsilon)
            found = "**yes**" if result.exceeded else "no"
            claimed, bound = rounded_up(result.claimed_epsilon, 3), rounded_down(result.lower_bound, 3)
            lines.append(f"| {name} | {claimed} | {result.method} | {bound} | {found} |")
    lines += ["", "## How far one record moves the sum", "", *sensitivity_lines(flags)]
    return "\n".join(lines)


def correct_lines(flags: argparse.Namespace, epsilon: float) -> list[str]:
    """One line a method; gaussian, f_dp and one_run look at the same run, and at one with ten times the canaries."""
    net, loss, records = two_layers(32)
    plan, lines = planned(flags, epsilon), []
    for canaries in (flags.canaries, 10 * flags.canaries):
        started = time.perf_counter()
        signals = observe(plan, model=net, loss=loss, records=records, canaries=canaries)
        run = time.perf_counter() - started
        for method in METHODS:
            started = time.perf_counter()
            lines.append(_line(judge(signals, method, flags.confidence), run + time.perf_counter() - started))
    started = time.perf_counter()
    result = pairs_result(flags, epsilon, Mechanism())
    return [*lines, _line(result, time.perf_counter() - started)]


def broken_result(flags: argparse.Namespace, name: str, mechanism: Mechanism, epsilon: float) -> AuditResult:
    """What the audit that is made for a mistake says about it."""
    if name == SHUFFLED:
        return pairs_result(flags, epsilon, mechanism)
    net, loss, records = two_layers(32)
    plan = planned(flags, epsilon)
    return audit(
        plan,
        model=net,
        loss=loss,
        records=records,
        canaries=flags.canaries,
        confidence=flags.confidence,
        mechanism=mechanism,
    )


def pairs_result(flags: argparse.Namespace, epsilon: float, mechanism: Mechanism) -> AuditResult:
    """Small data sets side by side, of the size that suits ``epsilon``."""
    rate, steps, pairs = PAIRS[epsilon]
    return audit_pairs(
        planned(flags, epsilon, rate, steps), pairs=pairs, confidence=flags.confidence, mechanism=mechanism
    )


def sensitivity_lines(flags: argparse.Namespace) -> list[str]:
    """The verdict on the two-layer network, as it is and with noise draws clipped as records."""
    net, loss, rows = two_layers(32 * flags.noise_multiplicity)
    plan = planned(flags, 1.0)
    lines = []
    for name, mechanism in (
        ("as it is", Mechanism()),
        ("noise draws clipped as records", BROKEN["noise draws clipped as records"]),
    ):
        started = time.perf_counter()
        result = audit_sensitivity(net, plan, loss, rows, mechanism=mechanism)
        lines.append(f"- {name}: {result.verdict()} [{time.perf_counter() - started:.1f} s]")
    return lines


def _line(result: AuditResult, seconds: float) -> str:
    claimed, bound = rounded_up(result.claimed_epsilon, 3), rounded_down(result.lower_bound, 3)
    return f"| {claimed} | {result.method} | {result.canaries:,} | {bound} | {result.share:.0%} | {seconds:.1f} |"


if __name__ == "__main__":
    sys.exit(main())
