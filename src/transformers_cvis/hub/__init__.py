# SPDX-License-Identifier: Apache-2.0
"""Models on the Hub: model cards, and pushes in one commit to one revision."""
