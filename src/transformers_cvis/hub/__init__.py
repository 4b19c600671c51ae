"""Models on the Hub: cards, and pushes of one commit to one revision."""
