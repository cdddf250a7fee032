# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often, and how soon, does a judge call the candidate worse? Simulated releases under five rules.

A release: 60 minutes, 2,000 requests a minute, each goes to the candidate with probability 0.1. Errors are independent;
stable fails with the base rate, the candidate with the base rate times the effect (x1 is an identical version, so every
call is a false one). Each rule looks every minute at all that it has seen, except where it says otherwise:

- sequential: our test of errors (alpha 0.05, one-sided, the share as it was in each minute);
- threshold: candidate's error ratio above 1.5 times stable's in four minutes in a row;
- z-test: two-proportion z-test on all requests so far, p < 0.05 and the candidate higher;
- Kayenta at the end, and every five minutes: Mann-Whitney on the error ratios of the minutes (98 %, tolerance 0.25).

The simulation is done in NumPy; the same numbers are asked of the modules for some runs, and have to agree.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".cache" / "collections"))

from ansible_collections.causeway.platform.plugins.module_utils.statistics import counts, kayenta, quantiles

MINUTES, PER_MINUTE, SHARE, ALPHA = 60, 2000, 0.1, 0.05
BASES, EFFECTS = (0.01, 0.001), (1.0, 1.5, 2.0, 4.0)
RULES = ("sequential", "threshold", "z-test", "Kayenta, end", "Kayenta, every 5 min")
NEVER = np.inf
# Latency: lognormal with a median of 50 ms and a p99 of 160 ms, seen through the default buckets
# of Prometheus' clients and through buckets that grow by a tenth; a look every two minutes.
BUCKETS = {
    "coarse": (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, math.inf),
    "fine": (*(0.005 * 1.1**i for i in range(80)), math.inf),
}
SLOWER, MARGIN, LATENCY_MINUTES = (1.0, 1.2, 1.5, 2.0), 0.2, 30


def simulate(rng: np.random.Generator, trials: int, base: float, effect: float) -> tuple[np.ndarray, ...]:
    """Requests and errors per trial and minute: candidate's requests and errors, stable's requests and errors."""
    candidate = rng.binomial(PER_MINUTE, SHARE, (trials, MINUTES))
    stable = PER_MINUTE - candidate
    return candidate, rng.binomial(candidate, base * effect), stable, rng.binomial(stable, base)


def first(hits: np.ndarray) -> np.ndarray:
    """Minute (from 1) of the first hit of each trial, or infinity."""
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, NEVER)


def grid(nodes: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Log multipliers and log weights of the one-sided prior: Beta(k w, k (1 - w)) of the candidate's part, cut."""
    k = counts.CONCENTRATION
    x, w = np.polynomial.legendre.leggauss(nodes)
    lam = 4.0 * (x + 1)
    p = SHARE * np.exp(lam) / (1 + SHARE * np.expm1(lam))
    log_weight = np.log(w) + k * SHARE * np.log(p) + k * (1 - SHARE) * np.log1p(-p)
    return lam, log_weight - special.logsumexp(log_weight)


def sequential(data: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """First minute at which the e-value reaches 1/alpha, and the last log e-value."""
    candidate, bad, stable, bad_stable = data
    lam, log_weight = grid()
    share = candidate / (candidate + stable)
    found = np.full(len(bad), NEVER)
    running = np.tile(log_weight, (len(bad), 1))
    for minute in range(MINUTES):
        total = (bad + bad_stable)[:, minute, None]
        running += bad[:, minute, None] * lam - total * np.log1p(share[:, minute, None] * np.expm1(lam))
        log_e = special.logsumexp(running, axis=1)
        found = np.where((found == NEVER) & (log_e >= -math.log(ALPHA)), minute + 1.0, found)
    return found, log_e


def threshold(data: tuple[np.ndarray, ...], factor: float = 1.5, strikes: int = 4) -> np.ndarray:
    """First minute that ends `strikes` minutes in a row with more than `factor` times stable's error ratio."""
    candidate, bad, stable, bad_stable = data
    over = bad / np.maximum(candidate, 1) > factor * bad_stable / stable
    hits = np.zeros_like(over)
    for minute in range(strikes - 1, MINUTES):
        hits[:, minute] = over[:, minute - strikes + 1 : minute + 1].all(axis=1)
    return first(hits)


def z_test(data: tuple[np.ndarray, ...]) -> np.ndarray:
    """First minute at which the pooled two-proportion z-test on all so far gives p < 0.05 (two-sided), higher."""
    candidate, bad, stable, bad_stable = (np.cumsum(part, axis=1) for part in data)
    pooled = (bad + bad_stable) / (candidate + stable)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / candidate + 1 / stable))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (bad / candidate - bad_stable / stable) / spread
    return first(z > stats.norm.isf(0.025))


def is_high(experiment: np.ndarray, control: np.ndarray) -> bool:
    """`kayenta.classify_metric` in NumPy for the direction `increase`: is the canary High?"""
    if np.array_equal(np.sort(experiment), np.sort(control)) or experiment.mean() < control.mean():
        return False
    m, n = len(experiment), len(control)
    pairs = np.sort((experiment[:, None] - control[None, :]).ravel())
    ties = sum(
        float((c**3 - c).sum()) for c in (np.unique(side, return_counts=True)[1] for side in (experiment, control))
    )
    sigma = math.sqrt(m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1))))
    # The lower end: the first stretch between differences whose standardised W is at or below the quantile.
    dz = m * n / 2 - np.arange(m * n + 1)
    below = dz - 0.5 * np.sign(dz) <= stats.norm.isf(0.01) * sigma
    lower = pairs[max(int(np.argmax(below)) - 1, 0)]
    return bool(lower > 0.25 * abs(np.median(pairs)))


def kayenta_rules(data: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """First minute at which Kayenta's classification is High: looking once at the end, and every five minutes."""
    candidate, bad, stable, bad_stable = data
    experiment, control = bad / candidate, bad_stable / stable
    end, often = np.full(len(bad), NEVER), np.full(len(bad), NEVER)
    for trial in range(len(bad)):
        for minute in range(5, MINUTES + 1, 5):
            if is_high(experiment[trial, :minute], control[trial, :minute]):
                often[trial] = minute
                break
        if is_high(experiment[trial], control[trial]):
            end[trial] = MINUTES
    return end, often


def verify(data: tuple[np.ndarray, ...], log_e: np.ndarray, end: np.ndarray, trials: int) -> float:
    """The modules on some trials: the largest difference of log e-values; the classes must be equal."""
    candidate, bad, stable, bad_stable = data
    config = kayenta.MetricConfig("errors", direction="increase")
    worst = 0.0
    for trial in range(trials):
        rows = [
            counts.interval(*(float(x) for x in row))
            for row in zip(bad[trial], candidate[trial], bad_stable[trial], stable[trial])
        ]
        ours = counts.log_e_value([row for row in rows if row], reference=SHARE)
        worst = max(worst, abs(ours - float(log_e[trial])) / max(1.0, abs(ours)))
        label = kayenta.classify_metric(
            config, (bad_stable[trial] / stable[trial]).tolist(), (bad[trial] / candidate[trial]).tolist()
        ).classification
        if (label == kayenta.HIGH) != (end[trial] == MINUTES):
            raise SystemExit(f"the benchmark and kayenta.classify_metric differ in trial {trial}: {label}")
    if worst > 1e-6:
        raise SystemExit(f"the benchmark and counts.log_e_value differ by {worst}")
    return worst


def peeking(rng: np.random.Generator, base: float, hours: int) -> int:
    """How many of so many releases of an identical version, an hour each, the module itself ever calls worse."""
    candidate, bad, stable, bad_stable = simulate(rng, hours, base, 1.0)
    alarms = 0
    for trial in range(hours):
        rows: list[counts.Interval] = []
        for row in zip(bad[trial], candidate[trial], bad_stable[trial], stable[trial]):
            one = counts.interval(*(float(x) for x in row))
            if one is not None:
                rows.append(one)
            if counts.log_e_value(rows, reference=SHARE) >= -math.log(ALPHA):
                alarms += 1
                break
    return alarms


def endless(rng: np.random.Generator, base: float, hours: int, streams: int) -> int:
    """How many of the streams of identical versions ever alarm when each runs, and is peeked at, for all the hours.

    The planned share is used instead of that of the minute: then the e-value is a ratio of incomplete Beta functions.
    """
    minutes = hours * 60
    bad = rng.binomial(PER_MINUTE, SHARE * base, (streams, minutes)).cumsum(axis=1)
    bad_stable = rng.binomial(PER_MINUTE, (1 - SHARE) * base, (streams, minutes)).cumsum(axis=1)
    k = counts.CONCENTRATION
    a, b = k * SHARE, k * (1 - SHARE)
    with np.errstate(divide="ignore"):
        log_e = (
            special.betaln(a + bad, b + bad_stable)
            - special.betaln(a, b)
            + np.log(special.betaincc(a + bad, b + bad_stable, SHARE))
            - math.log(special.betaincc(a, b, SHARE))
            - bad * math.log(SHARE)
            - bad_stable * math.log1p(-SHARE)
        )
    return int((log_e.max(axis=1) >= -math.log(ALPHA)).sum())


def latency(rng: np.random.Generator, bounds: tuple[float, ...], slower: float, releases: int) -> np.ndarray:
    """First minute at which the module calls p99 worse than 1.2 times stable's; every request takes `slower` times."""
    found = np.full(releases, NEVER)
    parts = [
        np.diff(stats.lognorm.cdf(np.array(bounds) / factor, 0.5, scale=0.05), prepend=0) for factor in (1.0, slower)
    ]
    for release in range(releases):
        seen = [np.zeros(len(bounds)), np.zeros(len(bounds))]
        for minute in range(2, LATENCY_MINUTES + 1, 2):
            for side, (share, part) in enumerate(zip((1 - SHARE, SHARE), parts)):
                seen[side] += rng.multinomial(int(2 * PER_MINUTE * share), part)
            stable, candidate = (quantiles.histogram(bounds, side.cumsum().tolist()) for side in seen)
            if quantiles.log_e_quantile_worse(stable, candidate, 0.99, MARGIN) >= -math.log(ALPHA):
                found[release] = minute
                break
    return found


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """Calls within the hour and median minute, by effect, one column per base rate."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "causeway"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(BASES), figsize=(11, 7.2), sharex=True)
    colours = ("#0072b2", "#d55e00", "#cc79a7", "#999999", "#009e73")
    width = 0.16
    for column, base in enumerate(BASES):
        for position, rule in enumerate(RULES):
            mine = [row for row in rows if row["base"] == base and row["rule"] == rule]
            places = np.arange(len(EFFECTS)) + (position - 2) * width
            axes[0, column].bar(
                places, [100 * row["called"] for row in mine], width, color=colours[position], label=rule
            )
            minutes = [np.nan if row["median_minute"] is None else row["median_minute"] for row in mine]
            axes[1, column].bar(places, minutes, width, color=colours[position])
        axes[0, column].axhline(100 * ALPHA, color="black", linewidth=0.8, linestyle=":")
        axes[0, column].set_title(f"base error rate {base:.1%}")
        axes[0, column].set_ylim(0, 104)
        axes[1, column].set_ylim(0, MINUTES + 3)
        axes[1, column].set_xticks(range(len(EFFECTS)))
        axes[1, column].set_xticklabels(["x1\n(identical: false alarms)", *(f"x{e:g}" for e in EFFECTS[1:])])
        axes[1, column].set_xlabel("error rate of the candidate")
    axes[0, 0].set_ylabel("called worse within the hour, %")
    axes[1, 0].set_ylabel("median minute of the call\n(none: fewer than half were called)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncol=len(RULES), frameon=False)
    figure.text(0.99, 0.01, "dotted: alpha = 5 %", ha="right", fontsize=8)
    figure.tight_layout(rect=(0, 0.01, 1, 0.95))
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Simulate, print the tables, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="releases per base rate and effect")
    parser.add_argument("--hours", type=int, default=200, help="hours of identical versions")
    parser.add_argument("--latency", type=int, default=40, help="releases per slowdown")
    parser.add_argument("--verify", type=int, default=20, help="releases per cell that the modules themselves judge")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "judge")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    started = time.process_time()
    rows: list[dict[str, Any]] = []
    worst = 0.0
    print(f"{options.trials} releases per line, seed {options.seed}; called worse within {MINUTES} min / median minute")
    print(f"{'base':>6} {'effect':>6} " + " ".join(f"{rule:>22}" for rule in RULES))
    for base in BASES:
        for effect in EFFECTS:
            data = simulate(rng, options.trials, base, effect)
            ours, log_e = sequential(data)
            end, often = kayenta_rules(data)
            worst = max(worst, verify(data, log_e, end, min(options.verify, options.trials)))
            cells = []
            for rule, minutes in zip(RULES, (ours, threshold(data), z_test(data), end, often)):
                called = float(np.isfinite(minutes).mean())
                median = float(np.median(minutes))
                rows.append(
                    {
                        "base": base,
                        "effect": effect,
                        "rule": rule,
                        "called": called,
                        "median_minute": median if math.isfinite(median) else None,
                        "trials": options.trials,
                    }
                )
                cells.append(f"{called:>13.1%} / {median if math.isfinite(median) else '-':>6}")
            print(f"{base:>6.1%} {'x' + format(effect, 'g'):>6} " + " ".join(cells), flush=True)
    print(f"the modules agree: log e-values within {worst:.1e} (relative), Kayenta's classes equal")
    peeks = {}
    for base in BASES:
        hours = options.hours
        alarms, long = peeking(rng, base, hours), endless(rng, base, hours, hours)
        peeks[str(base)] = {"hours": hours, "alarms": alarms, "endless_streams": hours, "endless": long}
        print(
            f"identical versions, {base:.1%} errors, a look every minute: {alarms} of {hours} one-hour releases "
            f"called worse ({alarms / hours:.1%}); {long} of {hours} streams of {hours} h each "
            f"({long / hours:.1%}); alpha {ALPHA:.0%}"
        )
    slow = []
    for name, bounds in BUCKETS.items():
        for slower in SLOWER:
            minutes = latency(rng, bounds, slower, options.latency)
            called, median = float(np.isfinite(minutes).mean()), float(np.median(minutes))
            shown = median if math.isfinite(median) else None
            slow.append({"buckets": name, "slower": slower, "called": called, "median_minute": shown})
            print(
                f"latency x{slower:g}, p99 with margin {MARGIN:.0%}, {name} buckets: called worse within "
                f"{LATENCY_MINUTES} min {called:.1%}, median minute {shown or '-'} ({options.latency} releases)"
            )
    spent = time.process_time() - started
    print(f"{spent:.0f} s of CPU time, Python {platform.python_version()}, NumPy {np.__version__}")
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "judge.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    summary: dict[str, object] = {"alpha": ALPHA, "seed": options.seed, "trials": options.trials, "peeking": peeks}
    summary["latency"] = slow
    (options.out / "judge.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot(rows, options.out / "judge.svg")


if __name__ == "__main__":
    main()
