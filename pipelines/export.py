"""The job `export`: a trained model as a SavedModel for TF Serving."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kser_tf.pipelines.baking_effect import baking_effect
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.job import current_result, fingerprint_of, write_job


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writes a trained model as `<output>/<version>/`, for TF Serving.

    Args:
        model: Folder that `train` wrote.
        prepared: Folder that `prepare` wrote; some of its test examples go with the model, for `kser-tf check`.
        output: The model's base folder, TF Serving's `--model_base_path`.
        version: Number of the version. Defaults to the next one.
        examples: How many examples go with the model.
        bake: How the entities' vectors, computed ahead, are kept: float32, float16 or int8. `none` computes them anew
            in each request.
        signatures: Which of with_knowledge, examples and embeddings are written beside serving_default. Defaults to all.
        warmup: Whether warm-up requests are written; without tensorflow-serving-api there are none, and the result says so.
        auc: Whether the AUC on all test examples, with the tables as they are served and without, is told. Defaults to
            whether that can differ: with float16 and int8.
    """

    __pydantic_config__ = STRICT_KEYS

    model: str
    prepared: str
    output: str
    version: int | None = None
    examples: int = 512
    bake: Literal["float32", "float16", "int8", "none"] = "float32"
    signatures: list[str] | None = None
    warmup: bool = True
    auc: bool | None = None


def export(config: ExportConfig) -> dict[str, Any]:
    """Does what `ExportConfig` says.

    Returns:
        Path, version, signatures and size of what was written, and under `effect` what `baking_effect` returns.

    Raises:
        KerasVersionError: Keras 3 is active.
        ExportError: The model cannot be exported.
    """
    inputs = {"model": fingerprint_of(config.model), "prepared": fingerprint_of(config.prepared)}
    if (done := current_result(config.output, job="export", config=config, inputs=inputs)) is not None:
        if Path(done["path"]).is_dir():
            return done
    import kser_tf
    from kser_tf.models.model_folder import load_model
    from kser_tf.pipelines.examples import raw_features

    started = time.monotonic()
    model = load_model(config.model)
    examples = next(raw_features(Path(config.prepared) / "test.parquet", model.schema.features, config.examples))
    metadata = {"schema": model.schema.fingerprint, "model": inputs["model"]}
    result = kser_tf.export(
        model,
        config.output,
        version=config.version,
        examples=examples,
        metadata=metadata,
        bake=None if config.bake == "none" else config.bake,
        signatures=config.signatures,
        warmup=config.warmup,
    ).as_dict()
    wants_auc = config.bake in ("float16", "int8") if config.auc is None else config.auc
    if wants_auc and config.bake != "none" and model.embedding.lookups:
        result["effect"] = baking_effect(model, config.prepared, [config.bake])
    write_job(
        config.output, job="export", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started
    )
    return result
