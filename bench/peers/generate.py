"""Times generation with another quantizer's 4-bit layers: ``python -m bench.peers.generate PEER``.

Runs in the peers' environment, which has no llava_fa; prints one line of JSON. With ``--quick``
the model is small.
"""

from __future__ import annotations

import json
import sys

from bench.generation import generation, replace_linear
from bench.peers.decode import PEERS
from bench.random_model import random_text_model


def main() -> None:
    """Measure the model that ``bench.decode_speed`` measures, in bfloat16."""
    peer, quick = sys.argv[1], "--quick" in sys.argv[2:]
    model = random_text_model(quick).bfloat16()
    replace_linear(model.model.layers, PEERS[peer])
    print(json.dumps({"model": f"{peer}, bfloat16", **generation(model)}))


if __name__ == "__main__":
    main()
