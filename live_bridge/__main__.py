"""`python -m live_bridge`: the same as the command `live_bridge`."""

import sys

from live_bridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
