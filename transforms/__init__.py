"""What flows through Beamtag and what happens to it; importable on its own, knows no flags."""

import os

# Or torch's threads spin while they wait for each other, on the cores that decode: measured, a
# third of the throughput or worse. It is read when torch is first imported, so it stands here,
# where every process of ours comes by before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
