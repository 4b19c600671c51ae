# SPDX-License-Identifier: Apache-2.0
"""Learning task by task: groups of queries, tasks of a model, task adapters."""
