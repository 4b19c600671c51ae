# SPDX-License-Identifier: Apache-2.0
"""Layers shared by several systems."""
