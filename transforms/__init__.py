"""What flows through Beamtag and what happens to it; importable on its own, knows no flags."""

import os

# Or the threads of torch, and of numpy's OpenBLAS, spin while they wait for each other, on cores
# that could decode: without the first a decode-bound job ran at 0.8 of its throughput, the second
# was 8 % of its processor time (tests/benchmarks/RESULTS.md). They are read when torch and numpy
# are first imported, so they stand here, where every process of ours comes by before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
