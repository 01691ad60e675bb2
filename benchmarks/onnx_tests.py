"""Run ONNX's own test models through `groups` and `prune` (l1, 0.5): counts and reasons.

The models are tried as they are and with weights that can be cut.

    python benchmarks/onnx_tests.py [--variant NAME]... [--match REGEX]

The models are those of the installed onnx: what it ships as files, and the node tests, which it generates. Every pruned
model is compared with the masked one; where the outside checker is there (beside the shared models), it looks at every
pruned model too.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import warnings
from collections import Counter
from types import ModuleType

import onnx
from shared import ROOT, VERIFY, machine

import spa_onnx

sys.path.insert(0, str(ROOT / "tests"))
import onnx_cases

KINDS = ("verified", "inexact", "refused", "not runnable", "wrong", "traceback")


def checker() -> ModuleType | None:
    """The outside checker as a module, if it is there."""
    spec = importlib.util.spec_from_file_location("verify_pruned", VERIFY) if VERIFY.exists() else None
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fault(outside: ModuleType, proto: onnx.ModelProto) -> str:
    """Return what the outside checker finds wrong with the pruned model.

    Empty if it finds nothing, or where it cannot feed or compare the model.
    """
    found = spa_onnx.prune(proto, 0.5, criterion="l1")
    plan = {
        **found.plan,
        "tensors": [{**t, "kept": {a: list(k) for a, k in t["kept"].items()}} for t in found.plan["tensors"]],
    }
    source, target = outside.constants(proto), outside.constants(found.model)
    try:
        outside.check_plan(plan, source, target)
        outside.check_weights(plan, source, target)
        before, after = outside.session(outside.masked(proto, found.model, plan)), outside.session(found.model)
        for seed in range(2):
            feed = outside.feeds(before, seed, {}, {})
            try:
                wanted = before.run(None, feed)
            except Exception:  # noqa: BLE001 - random numbers suit not every operator, and onnxruntime has no type for that
                return ""
            gap = outside.compare(wanted, after.run(None, feed))
            if gap > 1e-3:
                return f"relative difference {gap:.3g}"
    except outside.Fault as error:
        return "" if "cannot feed" in str(error) or "not finite" in str(error) else str(error)
    return ""


def cause(why: str) -> str:
    """A refusal without the names and numbers of its model."""
    if "all" in why and "pinned" in why:
        reason = re.search(r"channels\): (.*?)(: |\. See)", why)
        return f"pinned: {reason.group(1) if reason else why}"
    if "onnxruntime cannot run the model on" in why:
        return "onnxruntime cannot run the model on the given inputs"
    return re.split(r"[:;(]", why.replace("nothing to prune: ", ""))[0].strip()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", choices=onnx_cases.VARIANTS)
    parser.add_argument("--match", default="")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    outside, faults, checked = checker(), [], 0
    sets = {"node": onnx_cases.node_cases(), "stored": onnx_cases.stored_cases()}
    reasons: Counter[str] = Counter()
    together: Counter[str] = Counter()
    print(f"Printed by `python benchmarks/onnx_tests.py` on {machine()}.\n")
    print(f"| models | variant | count | {' | '.join(KINDS)} |\n|---|---|---|{'---|' * len(KINDS)}")
    for name, cases in sets.items():
        chosen = tuple(case for case in cases if re.search(arguments.match, case.name))
        for variant in arguments.variant or onnx_cases.VARIANTS:
            found = list(onnx_cases.outcomes(chosen, variant))
            count = onnx_cases.tally(found)
            print(
                f"| {name} | {variant} | {len(found)} | {' | '.join(str(count[kind]) for kind in KINDS)} |", flush=True
            )
            together.update(count)
            reasons.update(cause(outcome.why) for _, outcome in found if outcome.kind == "refused")
            for case, outcome in found:
                if outcome.kind in ("wrong", "traceback"):
                    print(f"{case}: {outcome.kind}: {outcome.why}", file=sys.stderr)
                if outcome.kind == "verified" and outside is not None:
                    checked += 1
                    proto = onnx_cases.VARIANTS[variant](next(c for c in chosen if c.name == case))
                    problem = "" if proto is None else fault(outside, proto)
                    faults += [f"{case} ({variant}): {problem}"] if problem else []
    print(f"| all | | {together.total()} | {' | '.join(str(together[kind]) for kind in KINDS)} |")
    print(
        f"\nThe outside checker looked at {checked} pruned models and found fault with {len(faults)}.",
        *faults,
        sep="\n",
    )
    print("\n| why nothing was pruned | models |\n|---|---|")
    for why, times in reasons.most_common():
        print(f"| {why} | {times} |")


if __name__ == "__main__":
    main()
