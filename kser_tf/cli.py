"""The command `kser-tf`: each job of `kser_tf.pipelines` is a verb of it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kser_tf.errors import KserError
from kser_tf.version import __version__

EXIT_ERROR = 2
EXIT_CHECK_FAILED = 1
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Verb:
    """One verb: where its function and its configuration are.

    Args:
        name: The verb, which is also the function's name.
        module: The module of both.
        config: The configuration's class.
    """

    name: str
    module: str
    config: str


VERBS = (
    Verb("simulate", "kser_tf.pipelines.simulate", "SimulateConfig"),
    Verb("prepare", "kser_tf.pipelines.prepare", "PrepareConfig"),
    Verb("encode", "kser_tf.pipelines.encode", "EncodeConfig"),
    Verb("pool", "kser_tf.pipelines.pool", "PoolConfig"),
    Verb("train", "kser_tf.pipelines.train", "TrainConfig"),
    Verb("evaluate", "kser_tf.pipelines.evaluate", "EvaluateConfig"),
    Verb("inspect", "kser_tf.pipelines.inspect", "InspectConfig"),
    Verb("export", "kser_tf.pipelines.export", "ExportConfig"),
    Verb("refresh", "kser_tf.pipelines.refresh", "RefreshConfig"),
)
DEMO_CONFIG = "demo.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0, 1 for a check that failed, 2 for an error."""
    # TFRS needs Keras 2. Only the command line chooses; the library leaves the choice to its user.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except KserError as error:
        print(f"kser-tf: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("kser-tf: stopped. The same command goes on from here.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kser-tf", description="Knowledge of a language model for click-through-rate models in TensorFlow."
    )
    parser.add_argument("--version", action="version", version=f"kser-tf {__version__}")
    commands = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    # The verb's own module is imported only once it is known: some take seconds.
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for verb in VERBS:
        _add_job(commands, verb, with_flags=verb.name == chosen)
    _add_check(commands)
    _add_serving_config(commands)
    _add_run(commands)
    _add_benchmark(commands)
    given = parser.parse_args(arguments)
    return int(given.execute(given))


def _add_job(commands: Any, verb: Verb, *, with_flags: bool) -> None:
    command = commands.add_parser(verb.name, help=_HELP[verb.name])
    if not with_flags:
        return
    from kser_tf.pipelines.config import add_flags, from_flags

    module = importlib.import_module(verb.module)
    config_class = getattr(module, verb.config)
    command.description = (config_class.__doc__ or "").split("\n\n")[0]
    add_flags(command, config_class)

    def execute(given: argparse.Namespace) -> int:
        result = getattr(module, verb.name)(from_flags(config_class, given))
        print(json.dumps(result, indent=2, ensure_ascii=False, default=str))
        return 0

    command.set_defaults(execute=execute)


def _add_check(commands: Any) -> None:
    command = commands.add_parser("check", help="load a SavedModel as TF Serving does and compare its answers")
    command.add_argument("path", metavar="PATH", help="a version directory, such as serving/ranker/1")
    command.add_argument("--tolerance", type=float, default=1e-5, help="largest difference allowed; default 1e-5")

    def execute(given: argparse.Namespace) -> int:
        from kser_tf.serving.check import check

        result = check(given.path, tolerance=given.tolerance)
        print(result.text())
        return 0 if result.ok else EXIT_CHECK_FAILED

    command.set_defaults(execute=execute)


def _add_serving_config(commands: Any) -> None:
    command = commands.add_parser("serving-config", help="write what TensorFlow Serving in Docker is started with")
    command.add_argument("base", metavar="BASE", help="the folder with the versions, such as serving/ranker")
    command.add_argument("--output", metavar="DIR", required=True, help="where the files are written")
    command.add_argument("--name", help="the name that the model is served by; default the name of BASE")
    command.add_argument("--stable", type=int, metavar="VERSION", help="default the newest beside the canary")
    command.add_argument("--canary", type=int, metavar="VERSION", help="a second version beside it; default none")
    command.add_argument("--threads", type=int, help="the server's cores; default those of this machine")
    command.add_argument("--image", help="the Docker image of TensorFlow Serving")

    def execute(given: argparse.Namespace) -> int:
        from kser_tf.serving.server_config import IMAGE, write_server_config

        written = write_server_config(
            given.base,
            given.output,
            name=given.name,
            stable=given.stable,
            canary=given.canary,
            threads=given.threads,
            image=given.image or IMAGE,
        )
        print(f"{written.folder}: {', '.join(f'{label} {version}' for label, version in written.labels.items())}")
        return 0

    command.set_defaults(execute=execute)


def _add_run(commands: Any) -> None:
    run_command = commands.add_parser("run", help="all jobs of a configuration in a row, ending in a report")
    run_command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/movielens-1m.yaml")
    demo_command = commands.add_parser("demo", help="`run` on the built-in catalogue, with simulated clicks")
    for command in (run_command, demo_command):
        _add_workflow_flags(command)

    def execute(given: argparse.Namespace) -> int:
        from kser_tf.pipelines.run import load_run_config, run

        path = Path(given.config) if given.verb == "run" else demo_config()
        return run(load_run_config(path, data=given.data, work=given.work, overrides=given.set))

    run_command.set_defaults(execute=execute)
    demo_command.set_defaults(execute=execute)


def _add_benchmark(commands: Any) -> None:
    command = commands.add_parser(
        "benchmark", help="a matrix of models, compared: differences with intervals, by slice"
    )
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/benchmark-movielens-1m.yaml")
    _add_workflow_flags(command)
    command.add_argument(
        "--part", metavar="NAME", action="append", default=[], help="only this part; may be given several times"
    )
    command.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        default=[],
        help="only the cells whose names match, such as 'din/*', and those that they need; may be given several times",
    )
    command.add_argument("--summary", action="store_true", help="only the summary, of the cells that are done")
    command.add_argument(
        "--records",
        metavar="FOLDER",
        help="keep what cells find there too, in small files; cells that have one are not trained again",
    )

    def execute(given: argparse.Namespace) -> int:
        from kser_tf.pipelines.benchmark import BenchmarkConfig, benchmark
        from kser_tf.pipelines.config import load_config

        config = load_config(BenchmarkConfig, given.config, data=given.data, work=given.work, overrides=given.set)
        return benchmark(config, parts=given.part, only=given.only, summary=given.summary, records=given.records)

    command.set_defaults(execute=execute)


def _add_workflow_flags(command: argparse.ArgumentParser) -> None:
    """The flags of a verb that does many jobs."""
    command.add_argument("--data", metavar="FOLDER", help="what ${data} in the configuration stands for")
    command.add_argument("--work", metavar="FOLDER", help="where everything is written; default runs/<name>")
    command.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="overrides, such as train.seeds=[1]"
    )


def demo_config() -> Path:
    """Returns the path of the demo's configuration."""
    from kser_tf import configs

    return Path(configs.__path__[0]) / DEMO_CONFIG


_HELP = {
    "simulate": "write the demo's films, texts and simulated clicks",
    "prepare": "from a log of interactions to examples for training, validation and test",
    "encode": "from a table of texts to a knowledge store",
    "pool": "from knowledge about items to knowledge about users, by what they liked at first",
    "train": "train a ranking model, without knowledge or with it",
    "evaluate": "AUC, GAUC, log loss and calibration of a trained model",
    "inspect": "a look inside a trained model: weights, feature spaces, where knowledge helps and hurts",
    "export": "write a trained model as a SavedModel for TF Serving",
    "refresh": "add new entities to a served model, as a new version, without training",
}


if __name__ == "__main__":
    sys.exit(main())
