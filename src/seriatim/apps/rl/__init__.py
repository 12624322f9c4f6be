"""Reinforcement learning with models that remember: environments, what is added to them, rollouts, training."""
