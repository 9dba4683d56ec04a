"""The real world: wall clock, sockets, engines, peers and a durable ledger around the rules of market/.

A node runs the rules as plain Python, in microseconds: it needs neither a compiler nor torch.
"""

import os

os.environ["RULES"] = "python"
