"""What is measured here: results of agents over training seeds, speed, and more, each by a command of its own."""
