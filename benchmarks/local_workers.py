"""Workers of `tf.distribute` that are processes of this machine."""

from __future__ import annotations

import contextlib
import json
import socket


def worker_configs(count: int) -> list[str]:
    """Returns the environment variable TF_CONFIG for each of `count` workers, which talk by free ports of the loopback address."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    return [json.dumps({"cluster": {"worker": workers}, "task": task}) for task in tasks]
