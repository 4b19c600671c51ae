# SPDX-License-Identifier: Apache-2.0
"""Models on the Hub: cards, and pushes of one commit to one revision."""
