"""What flows through Beamtag and what happens to it; importable on its own, knows no flags."""

import os

# Or torch's threads spin while they wait for each other, on the cores that decode: without it a
# decode-bound job ran at 0.8 of its throughput (tests/benchmarks/RESULTS.md). It is read when torch
# is first imported, so it stands here, where every process of ours comes by before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
