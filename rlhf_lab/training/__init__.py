"""What every training loop needs besides its algorithm: files, history, randomness, optimisers, steps."""
