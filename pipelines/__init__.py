"""The command lines: one module per stage."""

import os

# Read by the OpenMP library when torch loads it, so it must be set before any import of torch. Threads that wait by spinning cost
# nothing on an idle machine, but slow a step down tenfold as soon as another process wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
