"""Latency and throughput of exported models, side by side in one process, through the session loader that TF Serving uses.

    .venv/bin/python benchmarks/serving_latency.py --model models/knowledge --base models/base --prepared prepared

exports the model with its tables baked in float32, float16 and int8 and unbaked, and the backbone alone, and measures
these, `with_knowledge`, and the backbone a second time, which shows the noise. Exports that are there are measured by

    .venv/bin/python benchmarks/serving_latency.py backbone=serving/base/1 baked=serving/baked/1 \
        with_knowledge=serving/baked/1#with_knowledge

A variant is NAME=VERSION_FOLDER, or NAME=VERSION_FOLDER#SIGNATURE. The requests are the rows that the export keeps. The
variants take turns, call by call for the latency and a while each for the throughput, round after round, so a machine
that becomes slower or faster does so for all of them; ratios to the first variant are taken round by round. Times are
those of a session's call, without network and protocol: what a server adds to them is the same for all. Last, one
variant, `--sweep` (default: `baked`, or else the first), is called with batches of growing size and with more callers:
the rows a second that `kser-tf serving-config` takes its values from. `--only-sweep` does nothing but this. Writes
`benchmarks/results/serving_latency.json`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from results import write_results

from kser_tf.serving import contract
from kser_tf.serving.loaded_model import LoadedModel

SWEEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="NAME=FOLDER[#SIGNATURE]")
    parser.add_argument("--model", help="folder that `kser-tf train` wrote: all variants are exported from it")
    parser.add_argument("--base", help="folder of the same model without knowledge, the backbone alone")
    parser.add_argument("--prepared", help="folder that `kser-tf prepare` wrote: real rows")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64, 512])
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--callers-batch", type=int, default=64, help="rows of a request in the throughput runs")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.2, help="of calls, for a variant in a round")
    parser.add_argument("--only-sweep", action="store_true")
    parser.add_argument("--sweep", help="name of the variant for the sweep over batch sizes and callers")
    parser.add_argument(
        "--sweep-seconds", type=float, default=1.0, help="of calls, for each size and number of callers"
    )
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "serving_latency.json"))
    given = parser.parse_args()
    if bool(given.variants) == bool(given.model) or (given.model and not (given.base and given.prepared)):
        parser.error("give variants, or --model with --base and --prepared")
    with tempfile.TemporaryDirectory() as folder:
        places = dict(text.split("=", 1) for text in given.variants) or exported(given, Path(folder))
        measure({name: Variant(place) for name, place in places.items()}, given)


def exported(given: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Exports model and backbone, each in a process of its own. Returns the variants."""

    def export(name: str, model: str, bake: str) -> str:
        command = [sys.executable, "-m", "kser_tf.cli", "export", "--model", model, "--prepared", given.prepared]
        command += ["--output", str(folder / name), "--bake", bake, "--warmup", "false", "--auc", "false"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"exported: {name}", flush=True)
        return str(folder / name / "1")

    backbone = export("backbone", given.base, "none")
    baked = export("baked", given.model, "float32")
    return {
        "backbone": backbone,
        "backbone again": backbone,
        "baked": baked,
        "baked float16": export("float16", given.model, "float16"),
        "baked int8": export("int8", given.model, "int8"),
        "unbaked": export("unbaked", given.model, "none"),
        "with_knowledge": f"{baked}#{contract.WITH_KNOWLEDGE}",
    }


def measure(variants: dict[str, Variant], given: argparse.Namespace) -> None:
    """Measures variants, and writes the results."""
    sizes, numbers = ([], []) if given.only_sweep else (given.batch_sizes, given.callers)
    latency = [row for size in sizes for row in measure_latency(variants, size, given)]
    throughput = [row for callers in numbers for row in measure_throughput(variants, callers, given)]
    default = "baked" if "baked" in variants else next(iter(variants))
    swept = variants[given.sweep or default]
    sweep = [
        {
            "batch_size": size,
            "callers": callers,
            "rows_per_second": round(called(swept, size, callers, given.sweep_seconds)[0]),
        }
        for size in SWEEP
        for callers in given.callers
    ]
    for row in sweep:
        print(row, flush=True)
    arguments = {k: v for k, v in vars(given).items() if k not in ("variants", "model", "base")}
    arguments["sweep"] = given.sweep or default
    about = {name: variant.about for name, variant in variants.items()}
    write_results(
        given.output,
        arguments | {"cores": os.cpu_count()},
        {"variants": about, "latency": latency, "throughput": throughput, "sweep": sweep},
    )


class Variant:
    """A signature of an export, and requests of every size drawn from the rows that are kept with it."""

    def __init__(self, place: str) -> None:
        folder, _, signature = place.partition("#")
        self._signature = signature or contract.SIGNATURE
        started = time.perf_counter()
        self._model = LoadedModel(folder)
        rows, _ = contract.load_examples(Path(folder) / contract.examples_file(self._signature))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        self.about: dict[str, Any] = {
            "signature": self._signature,
            "load_seconds": round(time.perf_counter() - started, 3),
            "bytes": size,
            "rows": len(next(iter(rows.values()))),
        }
        # Strings as objects, as they come out of a request.
        self._rows = {
            name: values.astype(object) if values.dtype.kind == "S" else values for name, values in rows.items()
        }
        self.call = self._model.direct(self._signature)
        self._next = 0

    def request(self, size: int) -> dict[str, np.ndarray]:
        """Rows for one call, going on where the last one ended."""
        count = self.about["rows"]
        index = np.arange(self._next, self._next + size) % count
        self._next = (self._next + size) % count
        return {name: values[index] for name, values in self._rows.items()}


def measure_latency(variants: dict[str, Variant], size: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    times: dict[str, list[list[float]]] = {name: [] for name in variants}
    names, order = list(variants), random.Random(size)
    for number in range(-1, given.rounds):
        found: dict[str, list[float]] = {name: [] for name in names}
        requests = {name: [variants[name].request(size) for _ in range(16)] for name in names}
        ends = time.perf_counter() + given.seconds * len(names)
        turn = 0
        while time.perf_counter() < ends or not turn:
            # In an order drawn anew: whoever always came after the largest model would always find cold caches.
            for name in order.sample(names, len(names)):
                before = time.perf_counter()
                variants[name].call(requests[name][turn % len(requests[name])])
                found[name].append(time.perf_counter() - before)
            turn += 1
        if number >= 0:  # the first round plans the graphs for this size
            for name in names:
                times[name].append(found[name])
    first = next(iter(variants))
    rows = []
    for name, rounds in times.items():
        every = [seconds for a_round in rounds for seconds in a_round]
        ratios = [
            statistics.median(ours) / statistics.median(theirs)
            for ours, theirs in zip(rounds, times[first], strict=True)
        ]
        rows.append(
            {
                "batch_size": size,
                "variant": name,
                "calls": len(every),
                "median_ms": round(1e3 * statistics.median(every), 4),
                "p99_ms": round(1e3 * float(np.quantile(every, 0.99)), 4),
                **ratio(ratios, first),
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure_throughput(variants: dict[str, Variant], callers: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in variants}
    order = random.Random(callers)
    for _ in range(given.rounds):
        for name in order.sample(list(variants), len(variants)):
            rates[name].append(called(variants[name], given.callers_batch, callers, given.seconds)[0])
    first = next(iter(variants))
    rows = []
    for name, found in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(found, rates[first], strict=True)]
        rows.append(
            {
                "callers": callers,
                "batch_size": given.callers_batch,
                "variant": name,
                "rows_per_second": round(statistics.median(found)),
                **ratio(ratios, first),
            }
        )
        print(rows[-1], flush=True)
    return rows


def ratio(ratios: list[float], first: str) -> dict[str, float]:
    """The median of the rounds' ratios, and the middle half of them."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        f"ratio_to_{first}": round(float(middle), 3),
        "ratio_quartiles": [round(float(low), 3), round(float(high), 3)],
    }


def called(variant: Variant, size: int, callers: int, seconds: float) -> tuple[float, list[float]]:
    """Calls for so many seconds from so many threads. Returns rows a second, and the seconds of each call."""
    requests = [[variant.request(size) for _ in range(16)] for _ in range(callers)]
    times: list[list[float]] = [[] for _ in range(callers)]
    started = time.perf_counter()

    def caller(number: int) -> None:
        mine, found = requests[number], times[number]
        while (before := time.perf_counter()) - started < seconds or not found:
            variant.call(mine[len(found) % len(mine)])
            found.append(time.perf_counter() - before)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    every = [seconds_ for found in times for seconds_ in found]
    return len(every) * size / elapsed, every


if __name__ == "__main__":
    main()
