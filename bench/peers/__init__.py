"""Real installations of other quantizers, each behind one adapter, in an environment of their own.

An adapter is a module of this folder with

- ``PACKAGE``: the distribution whose version counts;
- ``SETTINGS``: what is measured, the peer's own recommendation and others near the stored bits of
  the benches' baselines;
- ``quantize(task, options, seed)``: dense weights (and calibration data) to decoded weights and
  the bits of the buffers that the peer would save.

The peer itself is imported inside ``quantize``, so settings can be listed without it. Adapters run
in a separate process (``python -m bench.peers``), which needs ``requirements-peers.txt`` but not
llava-fa.
"""
