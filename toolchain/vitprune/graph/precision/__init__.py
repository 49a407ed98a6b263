"""Types of a finished graph: which nodes compute in a half type, the Casts between them and the rest, and what proves it."""
