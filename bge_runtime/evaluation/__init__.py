"""How good and how fast, measured."""
