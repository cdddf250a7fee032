#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: canary_analysis
short_description: Judge a candidate version by what Prometheus saw
description:
  - Compares the candidate pool of a service with the stable one, with tests that stay valid at every look; with
    O(instances) two groups of instances of one pool, as a rolling release has them.
  - A Prometheus that cannot be asked, or whose data are old, gives the verdict V(insufficient_data), never a failure of
    the module. The module fails for wrong options and for PromQL that cannot be parsed.
  - C(docs/judge.md) says how verdicts come about.
version_added: "0.1.0"
options:
  urls:
    description: Addresses of Prometheus servers, tried in order.
    type: list
    elements: str
    required: true
  ca_file:
    description: PEM file of the roots that Prometheus' certificate is checked against.
    type: path
    default: /etc/causeway/tls/operator/current/ca.pem
  cert_file:
    description: PEM file of the client certificate with its chain.
    type: path
    default: /etc/causeway/tls/operator/current/cert.pem
  key_file:
    description: PEM file of the client certificate's key.
    type: path
    default: /etc/causeway/tls/operator/current/key.pem
  timeout:
    description: Seconds that one answer may take.
    type: float
    default: 10.0
  service:
    description: Name of the service.
    type: str
    required: true
  candidate:
    description: Pool that is judged.
    type: str
    default: candidate
  stable:
    description: Pool that it is compared with.
    type: str
    default: stable
  baseline:
    description:
      - Pool of fresh instances of the old version that the candidate is compared with, instead of with O(stable), as
        long as both have traffic; empty for none.
      - After the switch the old version is both pools, as they were before it.
    type: str
    default: ""
  since:
    description: When the release began to shift traffic, as RFC 3339 or epoch seconds.
    type: str
    required: true
  until:
    description: Up to when; by default Prometheus' own now.
    type: str
  weights:
    description:
      - When the candidate's share changed, as C({at, weight}); C(weight) is its share in percent.
      - From a weight of 100 on the candidate is compared with the stable pool as it was before that moment.
    type: list
    elements: dict
    default: []
  instances:
    description:
      - >-
        Instances of a rolling release as C({host/slot: {until, since}}) with times in epoch seconds. An instance runs
        the old version before C(until) (without it, still) and the new one from C(since) on; what is between counts for
        neither.
      - The two groups are compared by what the instances' own sidecars counted; O(candidate) and O(stable) only name
        the sides in reasons. Metrics of kind C(saturation) and C(business) ask per pool and are left out, with a
        warning; if no other is left, errors and latency are judged.
    type: dict
    default: {}
  step:
    description: Number of the release's step, only handed on.
    type: int
    default: 0
  weight:
    description: The candidate's share in percent now; handed on, and used where O(weights) is empty.
    type: float
    default: 0.0
  analysis:
    description: >-
      C(release.analysis) of the service as C({interval, alpha, min_requests, method, groups, thresholds, metrics}); by
      default 30 s, 0.05, 100 requests, method V(sequential), errors and latency.
    type: dict
    default: {}
  final:
    description:
      - Whether this look ends the step. Only method V(kayenta) asks, as it is not valid at several looks.
      - With V(false) it shows its score, and nothing but a broken C(limit) gives another verdict than V(inconclusive)
        or V(insufficient_data).
    type: bool
    default: true
  max_age:
    description: Seconds after which the newest sample is too old for a verdict.
    type: float
    default: 60.0
  max_skew:
    description: Seconds by which the clocks of Prometheus and this host may differ. Smaller differences are corrected.
    type: float
    default: 60.0
  scrape_interval:
    description: Seconds between two scrapes.
    type: float
    default: 15.0
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: Nothing is changed.
  idempotent:
    support: full
    description: Nothing is changed.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Judge the candidate of orders
  causeway.platform.canary_analysis:
    urls: ["https://10.77.1.41:9090", "https://10.77.1.42:9090"]
    service: orders
    since: "2026-11-22T18:40:25Z"
    weights:
      - {at: "2026-11-22T18:40:25Z", weight: 5}
      - {at: "2026-11-22T18:41:25Z", weight: 25}
    step: 1
    weight: 25
    analysis:
      alpha: 0.05
      min_requests: 100
      metrics:
        - {name: errors, kind: errors}
        - {name: latency, kind: latency, quantile: 0.99, margin: 0.2}
        - name: baskets
          kind: business
          query: >-
            sum(rate(shop_baskets_total{service="$service", pool="$pool"}[$window]))
            / sum(rate(shop_visits_total{service="$service", pool="$pool"}[$window]))
          worse: lower
          margin: 0.05
  register: judged

- name: Judge the new instances of a rolling release of orders
  causeway.platform.canary_analysis:
    urls: ["https://10.77.1.41:9090", "https://10.77.1.42:9090"]
    service: orders
    candidate: the new version
    stable: the old one
    since: 1795374757.8
    weight: 33
    instances:
      app1/0: {until: 1795374741.2, since: 1795374757.8}
      app2/0: {}
      app3/0: {}
  register: judged
"""

RETURN = r"""
analysis:
  description:
    - The verdict as C(docs/design.md) section 8 has it. C(difference), C(lower), C(upper) are relative to stable.
    - With O(baseline), C(against) is the pool that the numbers under C(stable) are of.
    - Method V(kayenta) adds C(score) (0 to 100) and C(groups) (the score of each).
  returned: success
  type: dict
  sample:
    at: "2026-11-22T18:42:25.000Z"
    step: 1
    weight: 25
    verdict: fail
    reason: "errors: worse than stable, 41 of 2,013 requests failed on candidate, 12 of 18,020 on stable"
    metrics:
      - {name: errors, kind: errors, verdict: fail, reason: "errors: worse than stable", stable: 0.00067,
         candidate: 0.0204, difference: 29.6, lower: 13.1, upper: 60.2, e_value: 4.1e+9, unit: ratio,
         requests: {stable: 18020, candidate: 2013}}
prometheus:
  description: Whether and how Prometheus could be asked; C(skew) and C(age) of the newest sample are seconds.
  returned: success
  type: dict
  sample: {ok: true, url: "https://10.77.1.41:9090", reason: "", failures: {}, skew: 0.012, age: 4.2, warnings: []}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.analysis.client import AnalysisError, Prometheus
from ansible_collections.causeway.platform.plugins.module_utils.analysis.instances import parse_instances
from ansible_collections.causeway.platform.plugins.module_utils.analysis.judge import (
    METHODS,
    Judge,
    Request,
    parse_metric,
    parse_time,
)
from ansible_collections.causeway.platform.plugins.module_utils.analysis.scores import ScoreJudge, parse_scores

PER_POOL = ("saturation", "business")  # the user's queries
DEFAULT_METRICS = ({"name": "errors", "kind": "errors"}, {"name": "latency", "kind": "latency"})


def not_judged(params: dict[str, Any]) -> list[str]:
    """Names of metrics that cannot tell instances apart."""
    metrics = (params["analysis"] or {}).get("metrics") or ()
    return [str(one.get("name")) for one in metrics if one.get("kind") in PER_POOL] if params["instances"] else []


def request_of(params: dict[str, Any]) -> Request:
    """The question from the module's options. Raises AnalysisError."""
    analysis = params["analysis"] or {}
    weights = []
    for number, one in enumerate(params["weights"] or []):
        try:
            weights.append((parse_time(one["at"], f"weights[{number}].at"), float(one["weight"])))
        except (KeyError, TypeError, ValueError):
            raise AnalysisError(f"weights[{number}]: must be {{at, weight}} with a number as weight") from None
    try:
        numbers = {
            "interval": float(analysis.get("interval", 30.0)),
            "alpha": float(analysis.get("alpha", 0.05)),
            "min_requests": int(analysis.get("min_requests", 100)),
        }
    except (TypeError, ValueError):
        raise AnalysisError("analysis: interval, alpha and min_requests are numbers") from None
    if not 0 < numbers["alpha"] < 1 or numbers["interval"] <= 0 or numbers["min_requests"] < 1:
        raise AnalysisError("analysis: alpha lies between 0 and 1, interval is above 0, min_requests at least 1")
    method = analysis.get("method") or METHODS[0]
    if method not in METHODS:
        raise AnalysisError(f"analysis.method: {method!r} is unknown; allowed: {', '.join(METHODS)}")
    listed = analysis.get("metrics") or DEFAULT_METRICS
    if params["instances"]:
        # Scores compare pools once per step; the batches of a rolling release have neither.
        method = METHODS[0]
        listed = [one for one in listed if one.get("kind") not in PER_POOL] or DEFAULT_METRICS
    metrics = tuple(parse_metric(one, f"analysis.metrics[{number}]") for number, one in enumerate(listed))
    return Request(
        service=params["service"],
        since=parse_time(params["since"], "since"),
        until=None if params["until"] is None else parse_time(params["until"], "until"),
        metrics=metrics,
        method=method,
        final=params["final"],
        **parse_scores(analysis, metrics),
        weights=tuple(weights),
        instances=parse_instances(params["instances"]),
        interval=numbers["interval"],
        alpha=numbers["alpha"],
        min_requests=int(numbers["min_requests"]),
        **{
            key: params[key]
            for key in ("candidate", "stable", "baseline", "step", "weight", "max_age", "max_skew", "scrape_interval")
        },
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "ca_file": {"type": "path", "default": "/etc/causeway/tls/operator/current/ca.pem"},
            "cert_file": {"type": "path", "default": "/etc/causeway/tls/operator/current/cert.pem"},
            "key_file": {"type": "path", "default": "/etc/causeway/tls/operator/current/key.pem", "no_log": False},
            "timeout": {"type": "float", "default": 10.0},
            "service": {"type": "str", "required": True},
            "candidate": {"type": "str", "default": "candidate"},
            "stable": {"type": "str", "default": "stable"},
            "baseline": {"type": "str", "default": ""},
            "since": {"type": "str", "required": True},
            "until": {"type": "str"},
            "weights": {"type": "list", "elements": "dict", "default": []},
            "instances": {"type": "dict", "default": {}},
            "step": {"type": "int", "default": 0},
            "weight": {"type": "float", "default": 0.0},
            "analysis": {"type": "dict", "default": {}},
            "final": {"type": "bool", "default": True},
            "max_age": {"type": "float", "default": 60.0},
            "max_skew": {"type": "float", "default": 60.0},
            "scrape_interval": {"type": "float", "default": 15.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        files = (params["ca_file"], params["cert_file"], params["key_file"])
        request = request_of(params)
        judge = ScoreJudge if request.method == "kayenta" else Judge
        result = judge(Prometheus(params["urls"], *files, timeout=params["timeout"]), request).run()
    except AnalysisError as error:
        module.fail_json(msg=str(error))
    if not_judged(params):
        result["prometheus"]["warnings"].append(f"not judged per instance: {', '.join(not_judged(params))}")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
