"""Images and labels where users have them, read in one way for all commands."""
