"""Serves until it is interrupted: `python -m kser_tf.serving.double BASE --name NAME`."""

from __future__ import annotations

import argparse
import signal
import threading

from kser_tf.serving.double.protocol_double import ProtocolDouble

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answers TensorFlow Serving's protocol; a double for tests.")
    parser.add_argument("base", help="the folder with the versions")
    parser.add_argument("--name", required=True, help="the name that the model is served by")
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--rest-port", type=int, default=8501)
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ProtocolDouble(given.base, name=given.name, grpc_port=given.grpc_port, rest_port=given.rest_port) as double:
        print(f"a double of TensorFlow Serving: gRPC {double.grpc_address}, REST {double.rest_address}", flush=True)
        stop.wait()
