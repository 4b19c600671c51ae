# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints, one file per family of systems.

Each file holds the rules for the names of the weights, the functions that read a configuration from their shapes, the
fields that reproduce released behaviour, and the entries for the table in `conversion/systems.py`.
"""
