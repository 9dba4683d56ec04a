"""HTTP on both sides of a node: our own protocol code over httptools, and the same interface over aiohttp as its reference."""
