"""The Dynamic Stream Orchestrator: who is let in, and which shape runs when, where and with whom."""
