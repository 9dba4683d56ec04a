"""The engine behind a node: its load as it tells it, one that is emulated, one that the node starts, and what one costs."""
