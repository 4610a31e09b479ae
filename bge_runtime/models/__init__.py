"""From a name to facts and files."""
