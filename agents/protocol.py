"""The evaluation protocol: what every published number has in common. Nothing here can be set on a command line.

Horizon and arrivals are the scenario's own (conf/env); a request is judged where its deadline lies inside the horizon.
There is no warm-up: runs of the paper begin with empty engines too, and live runs must.
"""

VERSION = 2
"""Rises when a number would come out different, or stand elsewhere in a file of results."""
FIRST_SEED = 1_000_000
"""Seed of the episodes, which no training may use: network i of this seed plays the same episode for every policy."""
SEEDS = 200
"""Episodes of every entrant."""
THRESHOLDS = (0.4, 1.8, 36)
"""SLO thresholds of curves as shares of the scenario's SLO: lowest, highest, how many; 100 s to 450 s by 10 s where it is 250 s."""
TRIM = 0.25
"""Share of the scores that the interquartile mean cuts off at each end."""
RESAMPLES = 2000
"""Of the stratified bootstrap."""
LEVEL = 0.95
"""Share of the resamples that an interval holds."""
