"""The durable ledger: orders signed by the owners of accounts, rules of the market, three engines, one journal."""
