"""What grows while training runs: nothing that has no bound."""

import resource
import subprocess
import sys

from conftest import ROOT

SCRIPT = """
import resource, sys
from ospo.credit.segments import segment_many

def mib():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20

for step in range(int(sys.argv[1])):
    segment_many([f"warm zq{step}x{i} jacket with kx{step} lining, blue vy{step}y{i}" for i in range(16)])
    if step in (int(sys.argv[1]) // 2, int(sys.argv[1]) - 1):
        print(mib(), flush=True)
"""


def test_segmenting_new_answers_is_bounded_over_10_000_steps() -> None:
    """Without spaCy's memory zones the store grows by 20 KB per step: 200 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "10000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    half, end = map(float, done.stdout.split())
    assert end - half < 25, (half, end)
    assert resource.getpagesize() > 0
