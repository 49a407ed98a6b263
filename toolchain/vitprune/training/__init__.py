"""Training of token-pruned models: data, loop, losses, and one behaviour per method that needs its own."""
