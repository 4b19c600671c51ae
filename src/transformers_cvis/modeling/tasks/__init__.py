"""Learning task by task: groups of queries, tasks of a model, task adapters."""
