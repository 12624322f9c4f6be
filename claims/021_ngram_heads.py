"""Heads that are wired to look up what followed the last tokens earlier in the text make recurrent models better at
learning a language from examples in their context.
"""

import statistics

from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, parameters, trained
from seriatim.tasks.icll import ICLL

SOURCE = "2401.12973"
LENGTH = 192


def run(quick: bool, seed: int) -> list[Finding]:
    """The share of predicted symbols that the language of the sequence allows, with heads and without."""
    task, findings = ICLL(), []
    for mixer in ("gla",) if quick else ("gla", "lstm"):
        rates: dict[str, list[float]] = {"without": [], "with": []}
        sizes = {}
        for repeat in range(1 if quick else 2):
            for name, orders in (("without", []), ("with", [1, 2, 3])):
                spec = {"mixer": mixer, "heads": 2}
                model = trained(
                    task, [spec, spec], dim=48, steps=3 if quick else 300, batch=16, lengths=(LENGTH, LENGTH),
                    seed=seed + repeat, ngram_heads=orders,
                )  # fmt: skip
                rates[name].append(answers(model, task, LENGTH))
                sizes[name] = parameters(model)
        means = {name: statistics.mean(values) for name, values in rates.items()}
        ours = "; ".join(
            f"{name}: {means[name]:.2f} ({min(rates[name]):.2f} to {max(rates[name]):.2f}, {sizes[name]:,} parameters)"
            for name in rates
        )
        holds = None if quick else min(rates["with"]) > max(rates["without"])
        findings.append(Finding(f"{mixer}, without and with heads of order 1, 2, 3", "better with heads", ours, holds))
    return findings
