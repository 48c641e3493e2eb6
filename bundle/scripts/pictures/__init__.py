"""Cases as pictures."""
