"""What recipes are made of: reading, and values that need a look of their own."""
