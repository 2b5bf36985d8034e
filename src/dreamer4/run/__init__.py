"""One run, from data to results: stages over a folder, and what keeps its work from being lost or mixed up.

`folder` says where everything lies; `stages` are what is done in it, by `execute`; `phase` is one phase of training at
work, with its checkpoints; `behaviour` collects the data set; `lineage` starts a run from another one's phases;
`writing`, `processes` and `stopping` are locks, several hosts and signals; `reporter` is who is told.

Each is imported from where it is, such as `dreamer4.run.stages`: signals are handled before anything heavy is loaded.
"""
