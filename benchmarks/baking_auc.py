"""What float16 and int8 tables do to a trained model's predictions, and whether a SavedModel answers as `model.predict`.

    .venv/bin/python benchmarks/baking_auc.py --model models/knowledge --prepared prepared

On all test rows: AUC of the model itself and with its tables baked in float32, float16 and int8, and how far the logits
are apart, over all rows and over the first `--rows`. On these rows, besides: the answers of a SavedModel with float32
tables, through TensorFlow's session loader, against `model.predict` on the indexed examples that training reads. Writes
`benchmarks/results/baking_auc.json`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from results import write_results

import kser_tf
from kser_tf.pipelines.baking_effect import baking_effect
from kser_tf.serving import contract
from kser_tf.serving.baking import BAKE_TYPES, logits_when_baked

_BATCH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that `kser-tf train` wrote")
    parser.add_argument("--prepared", required=True, help="folder that `kser-tf prepare` wrote")
    parser.add_argument("--rows", type=int, default=10_000, help="for the comparison with model.predict")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "baking_auc.json"))
    given = parser.parse_args()

    from kser_tf.models.model_folder import load_model, store_references
    from kser_tf.pipelines.examples import IndexedExamples

    model = load_model(given.model)
    stores = {entity: reference.open() for entity, reference in store_references(given.model).items()}
    started = time.monotonic()
    figures: dict[str, Any] = {"all_test_rows": baking_effect(model, given.prepared, BAKE_TYPES)}
    print(f"{figures['all_test_rows']} in {time.monotonic() - started:.0f} s", flush=True)
    examples = IndexedExamples(given.prepared, "test", stores)
    raw = next(examples.raw_batches(given.rows))
    figures["first_rows"] = compare(model, examples, raw)
    print(figures["first_rows"], flush=True)
    arguments = {
        "rows": given.rows,
        "backbone": model.config.backbone,
        "stores": {e: len(s) for e, s in stores.items()},
    }
    write_results(given.output, arguments, figures)


def compare(model: Any, examples: Any, raw: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest differences on some rows: of small tables, and of a SavedModel and `model.predict`."""
    rows = len(next(iter(raw.values())))
    indexed = examples.batches(_BATCH).map(lambda features, label: features).take(-(-rows // _BATCH))
    predicted = model.predict(indexed, verbose=0)[:rows, 0].astype(np.float64)
    own = model.serve(raw)["logit"].numpy()
    found: dict[str, Any] = {"rows": rows, "logits": [float(predicted.min()), float(predicted.max())]}
    for dtype in BAKE_TYPES:
        found[f"largest_{dtype}"] = float(np.abs(logits_when_baked(model, [raw], dtype) - own).max())
    with tempfile.TemporaryDirectory() as folder:
        path = kser_tf.export(model, Path(folder) / "model", signatures=(), examples=raw).path
        answers = served(path, raw)
    found["saved_model_and_predict"] = {
        "logit": float(np.abs(answers[contract.LOGIT] - predicted).max()),
        "probability": float(np.abs(answers[contract.PROBABILITY] - 1 / (1 + np.exp(-predicted))).max()),
    }
    return found


def served(path: Path, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from kser_tf.serving.loaded_model import LoadedModel

    with LoadedModel(path) as loaded:
        return loaded.run(contract.SIGNATURE, contract.as_table(raw, loaded.signatures[contract.SIGNATURE]["inputs"]))


if __name__ == "__main__":
    main()
