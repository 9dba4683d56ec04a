"""The real world: wall clock, sockets, engines, peers and a durable ledger around the rules of market/.

A node runs the rules as plain Python, in microseconds: it needs neither a compiler nor torch.
"""

import os
import sys

if "market.rule" not in sys.modules:  # a process that has loaded the rules has chosen how they run, for its children, too
    os.environ["RULES"] = "python"
