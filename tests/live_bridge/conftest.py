"""A node runs the rules as plain Python: these tests stand in a process of their own, `RULES=python pytest tests/live_bridge`."""

import os

collect_ignore_glob = [] if os.environ.get("RULES") == "python" else ["test_*.py", "*/test_*.py"]
