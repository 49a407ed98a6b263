"""What methods that drop tokens share; not a method of its own."""
