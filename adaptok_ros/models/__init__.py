"""Model folders as data: descriptions, where folders are found, and the shipped weights."""
