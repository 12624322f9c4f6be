"""Training objectives: what a model is asked to do, knowing only the contract."""
