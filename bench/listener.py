"""A peer where a policy would be: notes when tokens and latents of which image arrive.

Called as ``python listener.py NAMESPACE...``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import ros

from adaptok_ros.messages import stamp_of
from adaptok_ros.msg import DenseLatents, SparseTokens
from adaptok_ros.nodes import qos


def main() -> None:
    """Answer with ``[[number of the namespace, stamp, age in ms], ...]`` by kind, and forget."""
    with ros.node('bench_listener') as node:
        found: dict[str, list[Any]] = {'tokens': [], 'latents': []}

        def listen(kind: str, message_type: Any, topic: str, number: int, profile: Any) -> None:
            def arrived(message: Any) -> None:
                stamp = stamp_of(message.header)
                found[kind].append((number, stamp, (time.time_ns() - stamp) * 1e-6))

            node.create_subscription(message_type, topic, arrived, profile)

        for number, namespace in enumerate(sys.argv[1:]):
            listen('tokens', SparseTokens, f'{namespace}/tokenizer/tokens', number, qos.tokens(0))
            listen('latents', DenseLatents, f'{namespace}/lit/latents', number, 10)

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if question.get('count'):
                return {kind: len(values) for kind, values in found.items()}
            result = {kind: values[:] for kind, values in found.items()}
            for values in found.values():
                values.clear()
            return result

        ros.serve(answer)


if __name__ == '__main__':
    main()
