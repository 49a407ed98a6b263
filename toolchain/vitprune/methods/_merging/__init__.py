"""What methods that merge tokens share; not a method of its own."""
