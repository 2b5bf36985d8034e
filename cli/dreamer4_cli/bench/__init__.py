"""What `dreamer4 bench` measures: results of agents (`results`), `speed`, and `reliability`."""
