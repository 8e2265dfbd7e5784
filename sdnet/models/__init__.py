"""The method: stochastic depth, survival schedules, gates, blocks, networks."""
