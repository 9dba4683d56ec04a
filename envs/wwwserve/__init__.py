"""The simulated world of an open market of LLM providers, and its interfaces to learners.

Importing it registers `wwwserve/market-v0` with PettingZoo; nothing is compiled, nor the simulator imported, before one is made.
"""

import pettingzoo

pettingzoo.register("parallel", "wwwserve/market-v0", "envs.wwwserve.env:parallel_env")
pettingzoo.register("aec", "wwwserve/market-v0", "envs.wwwserve.env:env")
