"""The rules of the market, once; see each file's head."""
