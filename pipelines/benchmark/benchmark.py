"""`kser-tf benchmark`: a matrix of models, each a run of its own that can be stopped and goes on, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kser_tf.errors import PathLockedError
from kser_tf.files import write_json
from kser_tf.pipelines.benchmark.config import BenchmarkConfig
from kser_tf.pipelines.benchmark.matrix import BenchmarkMatrix, Cell, Examples
from kser_tf.pipelines.benchmark.page import text_of, write_summary
from kser_tf.pipelines.benchmark.records import Records
from kser_tf.pipelines.benchmark.state import BenchmarkState
from kser_tf.pipelines.benchmark.summary import build_summary
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.report import require_report_extra
from kser_tf.pipelines.steps import Steps, say
from kser_tf.pipelines.text_amount import slices_by_text
from kser_tf.schema import DatasetSchema

EXIT_FAILED_CELLS = 1


def benchmark(
    config: BenchmarkConfig,
    *,
    parts: Sequence[str] = (),
    only: Sequence[str] = (),
    summary: bool = False,
    records: str | Path | None = None,
) -> int:
    """Trains and evaluates the cells that are not done yet, and writes the summary.

    Every cell has a folder below `cells`, with what `train` and `evaluate` leave there. Stopped at any point, the same call goes
    on with the epoch that was being trained. A cell that fails is noted below `failures`, the others go on, and the next call
    tries it again. Several processes may work on one benchmark, each with patterns of its own: a cell that another one is
    at is left out.

    Args:
        config: The benchmark.
        parts: Names of the matrix's parts, to do those alone. Defaults to all.
        only: Patterns of cells' names, such as `din/*`; the cells that they need come with them. Defaults to all cells.
        summary: Whether to write the summary alone, of what is there.
        records: Folder of small files, one for each cell that is done: what it found, without its model. They are written there, and
            a cell of which one is there, from this very configuration and data, counts as done though its folder is gone; the
            model that another cell starts from is trained again then. Defaults to none.

    Returns:
        Exit status: 0, or 1 if a cell failed.

    Raises:
        ConfigError: The configuration contradicts itself, or a pattern matches nothing.
        DataError, MissingExtraError: The data cannot be prepared or the texts not encoded.
    """
    require_report_extra()
    matrix = BenchmarkMatrix(config)
    state = BenchmarkState(matrix, None if records is None else Records(records))
    if not summary:
        wanted = matrix.chosen(parts=parts, only=only)
        steps = Steps()
        _prepare(matrix, wanted, steps)
        for number, cell in enumerate(wanted, start=1):
            if state.state(cell) != "done":
                say(f"cell {number} of {len(wanted)}: {cell.name}")
                _do(matrix, state, cell, steps)
    for cell in matrix.cells:
        state.keep(cell)
    content = build_summary(matrix, state)
    page = write_summary(config.folder, content)
    print(text_of(content))
    print(f"\nSummary: {page}")
    return EXIT_FAILED_CELLS if content["progress"]["failed"] else 0


def _prepare(matrix: BenchmarkMatrix, cells: Sequence[Cell], steps: Steps) -> None:
    """Makes the examples, the knowledge stores and the slices that cells read."""
    from kser_tf.pipelines import encode, pool, prepare, simulate

    config = matrix.config
    if config.simulate is not None:
        simulating = from_mapping(
            simulate.SimulateConfig,
            {"output": str(config.folder / "simulated"), **config.simulate},
            source="simulate",
        )
        steps.do(simulate.simulate, simulating, Path(simulating.output))
    for examples in dict.fromkeys(map(matrix.examples, cells)):
        preparation = matrix.preparation(examples)
        steps.do(prepare.prepare, preparation, Path(preparation.output))
        if config.texts:
            _write_item_slices(matrix, examples)
    for text in dict.fromkeys(config.text(cell.variant) for cell in cells):
        for encoding in matrix.encodings(text).values() if text is not None else ():
            steps.do(encode.encode, encoding, Path(encoding.output))
    for examples, text in dict.fromkeys((matrix.examples(cell), config.text(cell.variant)) for cell in cells):
        if text is not None and (pooling := matrix.pooling(examples, text)) is not None:
            steps.do(pool.pool, pooling, Path(pooling.output))


def _write_item_slices(matrix: BenchmarkMatrix, examples: Examples) -> None:
    schema = DatasetSchema.load(matrix.preparation(examples).output)
    encodings = matrix.encodings(matrix.config.slices_by_text or next(iter(matrix.config.texts)))
    encoding = encodings.get(schema.feature(schema.item_id).entity or "")
    write_json(matrix.item_slices(examples), {} if encoding is None else slices_by_text(encoding))


def _do(matrix: BenchmarkMatrix, state: BenchmarkState, cell: Cell, steps: Steps) -> None:
    """Trains and evaluates a cell; the search's trials are trained alone, so that nothing is chosen on the test rows."""
    from kser_tf.pipelines import evaluate, train

    base = state.starts_from(cell)
    if base is not None and state.trained(base) is not None and not state.has_model(base):
        say(f"  of {base.name}, which it starts from, there is the record alone: trained again")
        _do(matrix, state, base, steps)

    missing = [needed for needed in matrix.needs(cell) if needed.trial is None and not state.has_model(needed)]
    training = state.training(cell)
    if missing or training is None:
        say(f"  left out: it needs {missing[0].name if missing else 'its trials'}, which failed or is not done")
        return
    state.forget_failure(cell)
    try:
        steps.do(train.train, training, Path(training.output))
        if cell.trial is None:
            evaluation = matrix.evaluation(cell)
            steps.do(evaluate.evaluate, evaluation, evaluation.folder)
        state.keep(cell)
    except PathLockedError:
        say("  left out: another process is at it")
    except Exception as error:  # whatever it is, the other cells can do without this one
        state.note_failure(cell, error)
        say(f"  failed: {type(error).__name__}: {error}")
